"""Large-neighbourhood search: a window of nodes is freed, all others are kept, and the window is
solved exactly, memory included.

A window is an ordinary problem: its nodes' costs include the edges to the outside, its base the
memory held outside. The planner's solver proves a window of a thousand states in a tenth of a
second. The number of nodes adapts to how long the last window took.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from planner.solver.exact.ilp import solve
from planner.solver.problem.problem import Array, Edge, Problem, Usage
from planner.solver.reduce.rows import Rows
from planner.solver.reduce.working import Labels
from planner.solver.relax.flat import Flat

__all__ = ["Surroundings", "Windows"]

#: Nodes of a window: at first, at least and at most.
_NODES, _FEWEST, _MOST = 60, 10, 400

#: Seconds that a window may take at most; above `_SLOW` it is too large, below `_QUICK` too small.
_PATIENCE, _SLOW, _QUICK = 3.0, 0.6, 0.15

#: A window has up to `_PATCHES` patches. Each grows by the node with most neighbours inside, among
#: `_DRAWN` drawn at random; random noise weighs this share of the neighbours.
_PATCHES, _DRAWN, _CHANCE = 3, 100, 0.3


class Surroundings:
    """A problem with its neighbours and usages by node, for making windows of it."""

    def __init__(self, problem: Problem, rows: Rows) -> None:
        self.problem, self.rows = problem, rows
        self.near: list[list[tuple[int, Array]]] = [[] for _ in problem.costs]
        self.usages: list[list[Usage]] = [[] for _ in problem.costs]
        for edge in problem.edges:
            self.near[edge.u].append((edge.v, edge.cost))
            self.near[edge.v].append((edge.u, edge.cost.T))
        for usage in problem.usages:
            self.usages[usage.node].append(usage)

    def window(self, labels: Labels, nodes: list[int]) -> Problem:
        """The problem of `nodes`, all others as in `labels`."""
        number = {node: k for k, node in enumerate(nodes)}
        costs, edges, usages = [], [], []
        outside = self.rows.excess(labels) + self.problem.limit
        for k, node in enumerate(nodes):
            cost = self.problem.costs[node]
            for other, table in self.near[node]:
                if other not in number:
                    cost = cost + table[:, labels[other]]
                elif node < other:
                    edges.append(Edge(u=k, v=number[other], cost=table))
            costs.append(cost)
            for usage in self.usages[node]:
                usages.append(Usage(node=k, nbytes=usage.nbytes, spans=usage.spans))
                for start, end, times in usage.spans:
                    outside[start:end] -= usage.nbytes[labels[node]] * times
        limited = self.problem.limit < float("inf")
        return Problem(
            costs=tuple(costs),
            edges=tuple(edges),
            usages=tuple(usages),
            horizon=self.problem.horizon,
            limit=self.problem.limit,
            base=outside if limited else None,
        )

    def better(
        self, labels: Labels, nodes: list[int], seconds: float, stopped: Callable[[], bool]
    ) -> Labels | None:
        """The labels with the window at its optimum; None if that changes nothing."""
        problem, now = self.window(labels, nodes), tuple(labels[nodes].tolist())
        found = solve(problem, time_limit=seconds, guess=now, stopped=stopped)
        if found.choice is None or not problem.cost(found.choice) < problem.cost(now) - 1e-9 * abs(
            problem.cost(now)
        ):
            return None
        out = labels.copy()
        out[nodes] = found.choice
        return out if self.rows.fits(out) else None


class Windows:
    """Window after window over a choice of a level: `labels` and their `cost`."""

    def __init__(self, problem: Problem, flat: Flat, rows: Rows, labels: Labels, seed: int) -> None:
        self.flat = flat
        self.put(labels)
        self.around = Surroundings(problem, rows)
        self.rng = np.random.default_rng(seed)
        self.size = float(min(_NODES, flat.num_nodes))

    def put(self, labels: Labels) -> None:
        """Continues from another choice."""
        self.labels, self.cost = labels, self.flat.cost(labels)

    def step(self, deadline: float, stopped: Callable[[], bool]) -> bool:
        """Solves one window; returns whether it improved the choice."""
        began = time.perf_counter()
        found = self.around.better(
            self.labels, self._nodes(), min(deadline - began, _PATIENCE), stopped
        )
        took = time.perf_counter() - began
        if took > _SLOW:
            self.size = max(_FEWEST, self.size * 0.8)
        elif took < _QUICK:
            self.size = min(_MOST, self.size * 1.05)
        if found is None or not self.flat.cost(found) < self.cost:
            return False
        self.put(found)
        return True

    def _nodes(self) -> list[int]:
        """The nodes of a window, 0.5 to 1.5 times the current size, in one connected patch or
        several: one patch may use memory that another, far from it, saves."""
        found: set[int] = set()
        patches = int(self.rng.integers(1, _PATCHES + 1))
        for _ in range(patches):
            self._grow(found, len(found) + round(self.size * self.rng.uniform(0.5, 1.5) / patches))
        return sorted(found)

    def _grow(self, found: set[int], most: int) -> None:
        """Adds a patch around a random node to `found`, until it has `most` nodes."""
        near, node = self.around.near, int(self.rng.integers(self.flat.num_nodes))
        edge: dict[int, int] = {}
        found.add(node)
        while len(found) < most:
            for other, _ in near[node]:
                if other not in found:
                    edge[other] = edge.get(other, 0) + 1
            if not edge:
                break
            drawn = list(edge)
            if len(drawn) > _DRAWN:
                drawn = [drawn[i] for i in self.rng.integers(len(drawn), size=_DRAWN)]
            chance = self.rng.uniform(0.0, _CHANCE, len(drawn)).tolist()
            node = max(
                zip(drawn, chance, strict=True),
                key=lambda one: edge[one[0]] / len(near[one[0]]) + one[1],
            )[0]
            found.add(node)
            del edge[node]
