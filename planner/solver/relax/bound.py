"""A lower bound by message passing, and the choices that it rules out.

Costs are moved between nodes and edges without changing the objective of any choice (a
reparametrisation), so that the sum of all minima, a lower bound, rises (MPLP++, Tourani et al.,
"MPLP++: Fast, Parallel Dual Block-Coordinate Ascent", ECCV 2018). An entry that is then more than
`slack` above its table's minimum cannot be part of a solution within `slack` of the bound.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from planner.solver.problem.problem import Array, Problem

__all__ = ["COMPILED", "CostLists", "Reparametrised", "decode", "reparametrise"]


#: From this many pairs on, importing compiled sweeps (a third of a second) is worth it; rounds of
#: handshakes that follow them.
COMPILED, _LAST = 60_000, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Reparametrised:
    """The problem's costs, moved; `bound` is the sum of their minima."""

    nodes: tuple[Array, ...]
    edges: tuple[Array, ...]
    bound: float
    converged: bool = False

    def kept(self, slack: float) -> int:
        """How many choices, beyond one per node, are within `slack` of their node's best."""
        return sum(int((n - n.min() <= slack).sum()) - 1 for n in self.nodes)


def reparametrise(
    problem: Problem,
    *,
    sweeps: int = 200,
    tolerance: float = 1e-9,
    start: Reparametrised | None = None,
    compiled: bool = False,
) -> Reparametrised:
    """The problem's costs after message passing (continued from `start`), until the bound no longer
    rises by `tolerance` of itself. For a problem of many pairs, or if `compiled`, all sweeps but
    the last few are compiled: these read a table once instead of eight times."""
    if (compiled or problem.num_pairs >= COMPILED) and all(
        edge.u < edge.v for edge in problem.edges
    ):
        start, sweeps = _swept(problem, start, sweeps), min(sweeps, _LAST)
    nodes = [np.array(c, dtype=float) for c in (start.nodes if start else problem.costs)]
    edges = [
        np.array(e, dtype=float)
        for e in (start.edges if start else (e.cost for e in problem.edges))
    ]
    bound, stalled = _bound(nodes, edges), 0
    costs = _costs(problem, nodes, edges)
    for index in range(sweeps):
        previous, bound = bound, costs.sweep(forward=index % 2 == 0)
        stalled = stalled + 1 if bound - previous <= tolerance * max(abs(bound), 1e-30) else 0
        if stalled >= 3:
            break
    nodes, edges = costs.apart()
    return Reparametrised(
        nodes=tuple(nodes), edges=tuple(edges), bound=bound, converged=stalled >= 3
    )


class _Costs(Protocol):
    """Costs that handshakes move."""

    def sweep(self, *, forward: bool) -> float: ...

    def apart(self) -> tuple[list[Array], list[Array]]: ...


def _costs(problem: Problem, nodes: list[Array], edges: list[Array]) -> _Costs:
    """Compiled if the compiler is here already: both give the same bits."""
    if "numba" not in sys.modules:
        return CostLists(problem, nodes, edges)
    from planner.solver.relax.handshakes import FlatCosts

    return FlatCosts(problem, nodes, edges)


@dataclass(frozen=True, slots=True)
class CostLists:
    """The costs as lists of arrays, for handshakes in numpy."""

    problem: Problem
    nodes: list[Array]
    edges: list[Array]

    def sweep(self, *, forward: bool) -> float:
        """A handshake on every edge, in order or against it; the bound after it."""
        order = range(len(self.edges))
        for index in order if forward else reversed(order):
            edge = self.problem.edges[index]
            _handshake(self.nodes, self.edges, edge.u, edge.v, index)
        return _bound(self.nodes, self.edges)

    def apart(self) -> tuple[list[Array], list[Array]]:
        """The costs of each node and each edge."""
        return self.nodes, self.edges


def _swept(problem: Problem, start: Reparametrised | None, sweeps: int) -> Reparametrised:
    """Costs moved by the compiled sweeps. The remaining slack is on the edges; handshakes share
    it out."""
    from planner.solver.reduce.rows import Rows
    from planner.solver.relax.flat import Flat
    from planner.solver.relax.lagrange import Dual

    tables = start.edges if start is not None else tuple(edge.cost for edge in problem.edges)
    moved = Problem(
        costs=start.nodes if start is not None else problem.costs,
        edges=tuple(
            replace(edge, cost=cost) for edge, cost in zip(problem.edges, tables, strict=True)
        ),
    )
    dual = Dual(Flat.of(moved), Rows(moved))
    for index in range(sweeps):
        dual.sweep(dual.flat.costs, index % 2 == 0)
    nodes, edges = [c.astype(float) for c in moved.costs], []
    for edge, a, b in zip(moved.edges, dual.to_u.tolist(), dual.to_v.tolist(), strict=True):
        of_u, of_v = (
            _finite(dual.messages[at : at + len(nodes[n])]) for at, n in ((a, edge.u), (b, edge.v))
        )
        nodes[edge.u], nodes[edge.v] = nodes[edge.u] + of_u, nodes[edge.v] + of_v
        edges.append(edge.cost - of_u[:, None] - of_v[None, :])
    return Reparametrised(nodes=tuple(nodes), edges=tuple(edges), bound=_bound(nodes, edges))


#: `Array.min` without its wrapper in Python, which takes as long as the rows of a small table do.
_least = np.minimum.reduce


def _handshake(nodes: list[Array], edges: list[Array], u: int, v: int, index: int) -> None:
    """Pulls both nodes' costs into the edge, then gives back as much as each can take without
    lowering any minimum."""
    total = edges[index] + nodes[u][:, None]
    total += nodes[v]
    to_u = 0.5 * _least(total, axis=1)
    total -= _finite(to_u)[:, None]
    to_v = _least(total, axis=0)
    total -= _finite(to_v)
    rest = _least(total, axis=1)
    total -= _finite(rest)[:, None]
    nodes[u], nodes[v], edges[index] = to_u + rest, to_v, total


def _finite(message: Array) -> Array:
    """A message to subtract: an impossible choice stays impossible without inf - inf."""
    return np.where(np.isfinite(message), message, 0.0)


def _bound(nodes: list[Array], edges: list[Array]) -> float:
    return float(sum(n.min() for n in nodes) + sum(e.min() for e in edges))


def decode(problem: Problem, moved: Reparametrised) -> tuple[int, ...]:
    """A good choice read off the reparametrised costs: for each node in turn, the cheapest given
    its decided neighbours; then 1-opt."""
    neighbours: list[list[tuple[int, int, bool]]] = [[] for _ in problem.costs]
    for index, edge in enumerate(problem.edges):
        neighbours[edge.u].append((edge.v, index, False))
        neighbours[edge.v].append((edge.u, index, True))
    choice = [-1] * len(problem.costs)
    for node in range(len(choice)):
        cost = moved.nodes[node].copy()
        for other, index, turned in neighbours[node]:
            if choice[other] >= 0:
                table = moved.edges[index]
                cost += table[choice[other], :] if turned else table[:, choice[other]]
        choice[node] = int(cost.argmin())
    return _one_opt(problem, choice, neighbours)


def _one_opt(
    problem: Problem, choice: list[int], neighbours: list[list[tuple[int, int, bool]]]
) -> tuple[int, ...]:
    for _ in range(20):
        changed = False
        for node, near in enumerate(neighbours):
            cost = problem.costs[node].copy()
            for other, index, turned in near:
                table = problem.edges[index].cost
                cost += table[choice[other], :] if turned else table[:, choice[other]]
            best = int(cost.argmin())
            if cost[best] < cost[choice[node]]:
                choice[node], changed = best, True
        if not changed:
            break
    return tuple(choice)
