"""Large-neighbourhood search: a window of nodes is freed, all others kept, and the window solved exactly, memory included.

A window's problem is an ordinary one: its nodes' costs hold what edges to the outside cost, its base what the outside holds. It is
reduced and given to the local-polytope program like any other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planner.solver.polytope import Polytope
from planner.solver.problem import Array, Choice, Edge, Problem, Usage
from planner.solver.reduce import Contradiction, reduce
from planner.solver.rows import Rows
from planner.solver.working import Labels

__all__ = ["Surroundings"]


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

    def ball(self, centre: int, size: int, rng: np.random.Generator) -> list[int]:
        """A connected window around a node, grown in random order."""
        found, edge = {centre}, [centre]
        while edge and len(found) < size:
            node = edge.pop(int(rng.integers(len(edge))))
            for other, _ in self.near[node]:
                if other not in found and len(found) < size:
                    found.add(other)
                    edge.append(other)
        return sorted(found)

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
