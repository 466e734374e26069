"""Large-neighbourhood search: a window of nodes is freed, all others kept, and the window solved exactly, memory included.

Windows of several kinds in turn, many nodes with few strategies each or few nodes with many; the pairs that a window of a kind may
have adapt to whether the last one was solved. Strategies that the dual finds dear are left out first.

A window's problem is an ordinary one: its nodes' costs hold what edges to the outside cost, its base what the outside holds. It is
reduced and given to the local-polytope program like any other.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np

from planner.solver.flat import Flat
from planner.solver.polytope import Polytope
from planner.solver.problem import Array, Choice, Edge, Problem, Usage
from planner.solver.reduce import Contradiction, reduce
from planner.solver.rows import Rows
from planner.solver.working import Labels

__all__ = ["Surroundings", "Windows"]

#: Pairs that a window may have at first, and the seconds that it may take; it grows where it is solved in an eighth of them.
_PAIRS, _PATIENCE = 4_000, 4.0

#: Kinds of window: strategies a node that one considers, cheapest by the dual first, beside the incumbent's.
_KEPT = (5, 12, 40, 1000)


class Surroundings:
    """A problem whose windows are asked for: neighbours and usages by node."""

    def __init__(self, problem: Problem, rows: Rows) -> None:
        self.problem, self.rows = problem, rows
        self.near: list[list[tuple[int, Array]]] = [[] for _ in problem.costs]
        self.usages: list[list[Usage]] = [[] for _ in problem.costs]
        for edge in problem.edges:
            self.near[edge.u].append((edge.v, edge.cost))
            self.near[edge.v].append((edge.u, edge.cost.T))
        for usage in problem.usages:
            self.usages[usage.node].append(usage)

    def window(self, labels: Labels, nodes: list[int], allowed: list[Labels]) -> Problem:
        """The problem of `nodes`, node k choosing among `allowed[k]`, all others as in `labels`."""
        number = {node: k for k, node in enumerate(nodes)}
        costs, edges, usages = [], [], []
        outside = self.rows.excess(labels) + self.problem.limit
        for k, (node, kept) in enumerate(zip(nodes, allowed, strict=True)):
            cost = self.problem.costs[node][kept]
            for other, table in self.near[node]:
                if other not in number:
                    cost = cost + table[kept, labels[other]]
                elif node < other:
                    edges.append(Edge(u=k, v=number[other], cost=table[np.ix_(kept, allowed[number[other]])]))
            costs.append(cost)
            for usage in self.usages[node]:
                usages.append(Usage(node=k, nbytes=usage.nbytes[kept], spans=usage.spans))
                for start, end, times in usage.spans:
                    outside[start:end] -= usage.nbytes[labels[node]] * times
        limited = self.problem.limit < float("inf")
        return Problem(
            costs=tuple(costs), edges=tuple(edges), usages=tuple(usages), horizon=self.problem.horizon, limit=self.problem.limit,
            base=outside if limited else None,
        )  # fmt: skip

    def better(
        self, labels: Labels, nodes: list[int], allowed: list[Labels], deadline: float, stopped: Callable[[], bool]
    ) -> tuple[Labels | None, bool]:
        """The labels with the window at its best, None where that is no change; and whether it was solved to the end."""
        problem = self.window(labels, nodes, allowed)
        now = problem.cost(tuple(int(np.searchsorted(kept, labels[n])) for n, kept in zip(nodes, allowed, strict=True)))
        try:
            reduced = reduce(problem)
        except Contradiction:
            return None, True
        choice: Choice | None = ()
        proved = True
        if reduced.problem.costs:
            rows = Rows(reduced.problem)
            found = Polytope(reduced.problem, rows, stopped=stopped).solve(deadline)
            choice, proved = found.choice, found.proved
        if choice is None:
            return None, proved
        whole = reduced.restore(choice)
        if not problem.cost(whole) < now - 1e-9 * abs(now):
            return None, proved
        out = labels.copy()
        out[nodes] = [int(kept[s]) for s, kept in zip(whole, allowed, strict=True)]
        return (out if self.rows.fits(out) else None), proved


class Windows:
    """Window after window over a choice of a level: `labels` and their `cost`."""

    def __init__(self, problem: Problem, flat: Flat, rows: Rows, marginals: Array, labels: Labels, seed: int) -> None:
        self.flat = flat
        self.put(labels)
        self.around = Surroundings(problem, rows)
        self.rng = np.random.default_rng(seed)
        self.pairs = dict.fromkeys(_KEPT, float(_PAIRS))
        pieces = [np.argsort(marginals[a:b], kind="stable") for a, b in itertools.pairwise(flat.first)]
        self.kept = {count: [np.sort(piece[:count]) for piece in pieces] for count in _KEPT}

    def put(self, labels: Labels) -> None:
        """Goes on from another choice."""
        self.labels, self.cost = labels, self.flat.cost(labels)

    def step(self, deadline: float, stopped: Callable[[], bool]) -> bool:
        """One window; whether it bettered the choice."""
        began = time.perf_counter()
        count = _KEPT[int(self.rng.integers(len(_KEPT)))]
        nodes = self._nodes(count)
        allowed = [np.unique(np.append(self.kept[count][n], self.labels[n])) for n in nodes]
        found, proved = self.around.better(self.labels, nodes, allowed, min(deadline, began + _PATIENCE), stopped)
        if not proved:
            self.pairs[count] = max(_PAIRS / 8, self.pairs[count] * 0.7)
        elif time.perf_counter() - began < _PATIENCE / 8:
            self.pairs[count] *= 1.1
        if found is None or not self.flat.cost(found) < self.cost:
            return False
        self.labels, self.cost = found, self.flat.cost(found)
        return True

    def _nodes(self, count: int) -> list[int]:
        """A connected window of about as many pairs as windows of this kind may have, around a random node."""
        near, kept = self.around.near, self.kept[count]
        found: set[int] = set()
        edge, pairs = [int(self.rng.integers(self.flat.num_nodes))], 0.0
        while edge and pairs < self.pairs[count]:
            node = edge.pop(int(self.rng.integers(len(edge))))
            if node in found:
                continue
            found.add(node)
            for other, _ in near[node]:
                if other in found:
                    pairs += len(kept[node]) * len(kept[other])
                else:
                    edge.append(other)
        return sorted(found)
