"""Memory that a pair of choices holds, as memory of a node: a tensor that changes layout on the way
from u to v is there twice for a while.

A pair's bytes M[i, j] become a node between u and v whose states are (j, one of the values in M's
column j). Its edge to v forces j to be v's choice; its edge to u forces the value to be M[i, j],
and takes over the pair's cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.solver.problem.problem import Array, Choice, Edge, Numbers, Problem, Span, Usage

__all__ = [
    "PairUsage",
    "completed",
    "memory_with_pairs",
    "peak_with_pairs",
    "with_pair_usages",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairUsage:
    """Bytes held by a pair: `nbytes[i, j]` where edge number `edge` sees i and j."""

    edge: int
    nbytes: Numbers
    spans: tuple[Span, ...]


def with_pair_usages(problem: Problem, pairs: Sequence[PairUsage]) -> Problem:
    """The problem with memory of pairs: its nodes keep their numbers, and one more follows for each
    pair usage. A choice of the first nodes determines that of the others."""
    costs = list(problem.costs)
    edges = list(problem.edges)
    usages = list(problem.usages)
    names = list(problem.names)
    for pair in pairs:
        edge = problem.edges[pair.edge]
        states = [
            (j, m)
            for j in range(pair.nbytes.shape[1])
            for m in np.unique(pair.nbytes[:, j]).tolist()
        ]
        follows = np.array([j for j, _ in states])
        values = np.array([m for _, m in states])
        node = len(costs)
        costs.append(np.zeros(len(states)))
        names += [f"{names[edge.u]} to {names[edge.v]}"] if names else []
        matches = pair.nbytes[:, follows] == values[None, :]
        first = edges[pair.edge] is edge  # the first of several usages of an edge takes its cost
        to_u = Edge(
            u=edge.u,
            v=node,
            cost=np.where(matches, edge.cost[:, follows] if first else 0.0, np.inf),
        )
        if first:
            edges[pair.edge] = to_u
        else:
            edges.append(to_u)
        edges.append(
            Edge(
                u=edge.v,
                v=node,
                cost=np.where(
                    np.arange(len(costs[edge.v]))[:, None] == follows[None, :], 0.0, np.inf
                ),
            )
        )
        usages.append(Usage(node=node, nbytes=values, spans=pair.spans))
    return replace(
        problem, costs=tuple(costs), edges=tuple(edges), usages=tuple(usages), names=tuple(names)
    )


def completed(problem: Problem, choice: Choice) -> Choice:
    """A choice of the first nodes, followed by the choice that it determines for the nodes of pair
    usages."""
    out = list(choice)
    for node in range(len(choice), len(problem.costs)):
        cost = problem.costs[node].astype(float)
        for edge in problem.edges:
            if edge.v == node:
                cost = cost + edge.cost[out[edge.u]]
        out.append(int(cost.argmin()))
    return tuple(out)


def memory_with_pairs(problem: Problem, pairs: Sequence[PairUsage], choice: Choice) -> Array:
    """Bytes held at every time under a choice of the problem's nodes, those of `pairs`
    included."""
    steps = np.zeros(problem.horizon + 1)
    for pair in pairs:
        edge = problem.edges[pair.edge]
        nbytes = float(pair.nbytes[choice[edge.u], choice[edge.v]])
        for start, end, times in pair.spans if nbytes else ():
            steps[start] += nbytes * times
            steps[end] -= nbytes * times
    held: Array = problem.memory(choice[: len(problem.costs)]) + np.cumsum(steps[:-1])
    return held


def peak_with_pairs(problem: Problem, pairs: Sequence[PairUsage], choice: Choice) -> float:
    """The most bytes held at any time, those of `pairs` included."""
    return float(memory_with_pairs(problem, pairs, choice).max(initial=0.0))
