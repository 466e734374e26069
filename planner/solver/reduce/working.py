"""A problem that is being reduced, and the way back: `Working` -> a smaller `Problem`, and a choice
of that -> one of the whole.

Every change can be undone exactly: the trail records how a choice of the smaller problem determines
the nodes that are gone. Costs of `FORBIDDEN` or more are infinite here.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.solver.problem.problem import (
    Array,
    Choice,
    Edge,
    Numbers,
    Problem,
    Span,
    Usage,
    forbids,
)

__all__ = ["Contradiction", "Reduced", "Working"]

Labels = NDArray[np.int64]


class Contradiction(Exception):
    """No choice avoids what is forbidden, or none fits: an answer, not an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """`problem` has the whole problem's optimum less `offset`. `restore` turns its best choice
    into a best choice of the whole; `project` turns a choice of the whole into one near it, keeping
    the strategies that are still there. `clock` gives its times as times of the whole; its node i
    is the whole's `nodes[i]` with strategies `strategies[i]`."""

    problem: Problem
    offset: float
    restore: Callable[[Choice], Choice]
    project: Callable[[Choice], Choice]
    clock: Labels
    nodes: tuple[int, ...]
    strategies: tuple[Labels, ...]


class Working:
    """Nodes, tables between neighbours, and memory in parts, all of which may change. A node that
    is gone is None."""

    def __init__(self, problem: Problem) -> None:
        self.whole = problem
        self.costs: list[Array] = [_priced(c) for c in problem.costs]
        self.near: list[dict[int, Array]] = [{} for _ in problem.costs]
        self.parts: list[dict[tuple[Span, ...], Array]] = [{} for _ in problem.costs]
        self.alive = np.ones(len(problem.costs), dtype=bool)
        self.strategies: list[Labels] = [np.arange(len(c)) for c in problem.costs]
        self.clock: Labels = np.arange(problem.horizon)
        self.offset = 0.0
        self.limited = problem.limit < float("inf")
        held = np.zeros(problem.horizon) if problem.base is None else problem.base.astype(float)
        self.room: Array = problem.limit - held
        self.touched: set[int] = set(range(len(problem.costs)))
        self._trail: list[Callable[[list[int]], None]] = []
        for edge in problem.edges:
            if edge.u == edge.v:
                self.costs[edge.u] = self.costs[edge.u] + _priced(np.diagonal(edge.cost))
            else:
                self.add_table(edge.u, edge.v, _priced(edge.cost))
        for usage in problem.usages if self.limited else ():
            spans = tuple(span for span in usage.spans if span[0] < span[1] and span[2])
            if spans:
                self.add_part(usage.node, spans, usage.nbytes.astype(float))

    # -------------------------------------------------------------------------------------- changes

    def touch(self, node: int) -> None:
        """Marks a node whose surroundings changed, and its neighbours, to be reduced again."""
        self.touched.add(node)
        self.touched.update(self.near[node])

    def add_table(self, u: int, v: int, table: Array) -> None:
        """Adds a table to the cost of the pairs of u and v."""
        found = self.near[u].get(v)
        table = table if found is None else found + table
        self.near[u][v], self.near[v][u] = table, table.T

    def drop_edge(self, u: int, v: int) -> None:
        del self.near[u][v], self.near[v][u]

    def add_part(self, node: int, spans: tuple[Span, ...], nbytes: Array) -> None:
        """Adds bytes held by a node. What all its strategies hold is taken off the room at those
        times."""
        found = self.parts[node].pop(spans, None)
        nbytes = nbytes if found is None else nbytes + found
        least = float(nbytes.min())
        if least:
            for start, end, times in spans:
                self.room[start:end] -= least * times
            nbytes = nbytes - least
        if nbytes.any():
            self.parts[node][spans] = nbytes

    def keep(self, node: int, kept: Labels) -> None:
        """Removes a node's strategies other than `kept`."""
        if not len(kept):
            raise Contradiction
        self.touch(node)
        self.costs[node] = self.costs[node][kept]
        self.strategies[node] = self.strategies[node][kept]
        for other, table in self.near[node].items():
            table = np.ascontiguousarray(table[kept])
            self.near[node][other], self.near[other][node] = table, table.T
        parts = self.parts[node]
        self.parts[node] = {}
        for spans, nbytes in parts.items():
            self.add_part(node, spans, nbytes[kept])

        def undo(choice: list[int]) -> None:
            choice[node] = int(kept[choice[node]])

        self._trail.append(undo)

    def fold(self, node: int) -> None:
        """Removes a node of one strategy; its costs and memory become constant."""
        self.touch(node)
        self.offset += float(self.costs[node][0])
        for other, table in list(self.near[node].items()):
            self.costs[other] = self.costs[other] + table[0]
            self.drop_edge(node, other)

        def undo(choice: list[int]) -> None:
            choice[node] = 0

        self._remove(node, undo)

    def merge(self, gone: int, into: int, forced: Labels) -> None:
        """Removes a node whose strategy is `forced[s]` if that of `into` is s; moves its costs,
        edges and memory there."""
        self.touch(gone)
        table = self.near[into][gone]
        self.costs[into] = (
            self.costs[into] + self.costs[gone][forced] + table[np.arange(len(forced)), forced]
        )
        self.drop_edge(gone, into)
        for other, table in list(self.near[gone].items()):
            self.drop_edge(gone, other)
            self.add_table(into, other, table[forced])
        for spans, nbytes in self.parts[gone].items():
            self.add_part(into, spans, nbytes[forced])

        def undo(choice: list[int]) -> None:
            choice[gone] = int(forced[choice[into]])

        self._remove(gone, undo)

    def eliminate(self, gone: int, around: tuple[int, ...], best: Labels) -> None:
        """Removes a node that holds nothing and whose best strategy is `best[choices around]`; the
        caller has moved its costs."""
        self.touch(gone)
        for other in around:
            self.drop_edge(gone, other)

        def undo(choice: list[int]) -> None:
            choice[gone] = int(best[tuple(choice[n] for n in around)])

        self._remove(gone, undo)

    def _remove(self, node: int, undo: Callable[[list[int]], None]) -> None:
        self.alive[node] = False
        self.costs[node] = np.zeros(0)
        self.parts[node] = {}
        self.touched.discard(node)
        self._trail.append(undo)

    # -------------------------------------------------------------------------------------- results

    def retime(self, times: Labels, renamed: Callable[[Span], Span | None]) -> None:
        """Keeps only the given times, in order; `renamed` maps a span to their numbers."""
        self.room, self.clock = self.room[times], self.clock[times]
        for node in self.nodes():
            parts = self.parts[node]
            self.parts[node] = {}
            for spans, nbytes in parts.items():
                left = tuple(span for span in map(renamed, spans) if span is not None)
                if left:
                    self.add_part(node, left, nbytes)
            if len(self.parts[node]) < len(parts):
                self.touched.add(node)

    def reduced(self) -> Reduced:
        """What is left, as a problem of its own."""
        nodes = np.flatnonzero(self.alive).tolist()
        number = {node: i for i, node in enumerate(nodes)}
        edges = [
            Edge(u=number[u], v=number[v], cost=np.ascontiguousarray(table))
            for u in nodes
            for v, table in self.near[u].items()
            if u < v
        ]
        usages = [usage for n in nodes for usage in self._usages(n, number[n])]
        limit = self.whole.limit
        problem = Problem(
            costs=tuple(self.costs[n] for n in nodes),
            edges=tuple(edges),
            usages=tuple(usages),
            horizon=len(self.room),
            limit=limit,
            base=limit - self.room if self.limited else None,
        )
        trail, size = tuple(self._trail), len(self.whole.costs)
        strategies = tuple(self.strategies[n] for n in nodes)

        def restore(choice: Choice) -> Choice:
            found = [-1] * size
            for node, label in zip(nodes, choice, strict=True):
                found[node] = label
            for undo in reversed(trail):
                undo(found)
            return tuple(found)

        def project(choice: Choice) -> Choice:
            return tuple(
                int((own == choice[node]).argmax())
                for node, own in zip(nodes, strategies, strict=True)
            )

        return Reduced(
            problem=problem,
            offset=self.offset,
            restore=restore,
            project=project,
            clock=self.clock,
            nodes=tuple(nodes),
            strategies=strategies,
        )

    def nodes(self) -> Iterable[int]:
        """The nodes that are left."""
        found: list[int] = np.flatnonzero(self.alive).tolist()
        return found

    def _usages(self, node: int, number: int) -> Iterable[Usage]:
        """A node's parts of memory as usages; parts with the same bytes become one."""
        alike: dict[bytes, list[tuple[Span, ...]]] = defaultdict(list)
        for spans, nbytes in self.parts[node].items():
            alike[nbytes.tobytes()].append(spans)
        for held, many in alike.items():
            yield Usage(
                node=number,
                nbytes=np.frombuffer(held),
                spans=tuple(itertools.chain.from_iterable(many)),
            )


def _priced(table: Numbers) -> Array:
    """A table of costs as floats, with infinity for forbidden entries."""
    found = table.astype(np.float64)
    found[forbids(found)] = np.inf
    return found
