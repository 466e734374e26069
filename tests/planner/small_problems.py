"""Small random problems, and the brute force that tests of the solver compare with."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from planner.solver.problem.problem import Edge, Problem, Usage, spans_of

__all__ = [
    "HORIZON",
    "INF",
    "array_of",
    "choices_of",
    "everything",
    "examples",
    "least",
    "numbers",
    "peak",
    "problems",
]

INF = float("inf")
HORIZON = 4
examples = settings(max_examples=60, deadline=None)

numbers = st.integers(0, 9).map(float)
costs_ = st.one_of(numbers, st.floats(0.0, 9.0, allow_nan=False).map(lambda x: round(x, 3)))
pair_costs = st.one_of(costs_, costs_, costs_, st.just(INF))


def array_of(draw: st.DrawFn, elements: st.SearchStrategy[float], *shape: int) -> np.ndarray:
    count = math.prod(shape)
    return np.array(draw(st.lists(elements, min_size=count, max_size=count))).reshape(shape)


@st.composite
def problems(draw: st.DrawFn, *, memory: bool = False) -> Problem:
    """Two to six nodes of one to four choices, edges between some, some pairs forbidden; usages
    of nodes over time."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=6))
    pairs = list(itertools.combinations(range(len(sizes)), 2))
    chosen = sorted(draw(st.lists(st.sampled_from(pairs), unique=True, max_size=7)))
    edges = tuple(
        Edge(u=u, v=v, cost=array_of(draw, pair_costs, sizes[u], sizes[v])) for u, v in chosen
    )
    usages: list[Usage] = []
    if memory:
        profile = st.sampled_from([0.0, 0.0, 1.0, 1.0, 3.0])
        holders = draw(st.lists(st.integers(0, len(sizes) - 1), unique=True, min_size=1))
        usages += [
            Usage(
                node=n,
                nbytes=array_of(draw, numbers, sizes[n]),
                spans=spans_of(array_of(draw, profile, HORIZON)),
            )
            for n in holders
        ]
    return Problem(
        costs=tuple(array_of(draw, costs_, size) for size in sizes),
        edges=edges,
        usages=tuple(usages),
        horizon=HORIZON,
    )


def choices_of(problem: Problem) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(c)) for c in problem.costs)))


def peak(problem: Problem, choice: tuple[int, ...]) -> float:
    return float(problem.memory(choice).max(initial=0.0))


def everything(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The cost of every choice, and its largest excess over the limit, by the definition and all
    at once."""
    sizes = [len(c) for c in problem.costs]
    grid = np.indices(sizes).reshape(len(sizes), -1) if sizes else np.zeros((0, 1), dtype=int)
    cost, held = np.zeros(grid.shape[1]), np.zeros((problem.horizon, grid.shape[1]))
    for node, own in enumerate(problem.costs):
        cost += np.where(own >= 1e17, INF, own)[grid[node]]
    for edge in problem.edges:
        cost += np.where(edge.cost >= 1e17, INF, edge.cost)[grid[edge.u], grid[edge.v]]
    for usage in problem.usages:
        for start, end, times in usage.spans:
            held[start:end] += times * usage.nbytes[grid[usage.node]]
    if problem.base is not None:
        held += problem.base[:, None]
    return cost, (held - problem.limit).max(axis=0, initial=-INF)


def least(problem: Problem) -> float:
    """The least cost within the limit."""
    cost, excess = everything(problem)
    return (
        float(cost[excess <= 1e-9 * problem.limit].min(initial=INF))
        if problem.limit < INF
        else float(cost.min())
    )
