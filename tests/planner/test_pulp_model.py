"""The planner's integer program where HiGHS's tolerances are wider than ours."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from planner.solver.exact.pulp_model import Found, Model, Start
from planner.solver.problem.problem import Edge, Problem, Usage
from planner.solver.relax.bound import reparametrise

LIMIT = 10**9


def crowded(num: int, over: int) -> Problem:
    """Of each node's strategies the cheap one needs a share of the limit, and all cheap ones
    together are `over` bytes too many."""
    share = LIMIT // num
    usages = tuple(
        Usage(
            node=n,
            nbytes=np.array([share + (over if n == 0 else 0), share - n - 1]),
            spans=((0, 1, 1),),
        )
        for n in range(num)
    )
    costs = tuple(np.array([0.0, 10.0 + 3 * n]) for n in range(num))
    edges = tuple(
        Edge(u=n, v=n + 1, cost=np.array([[0.0, 4.0], [4.0, 0.0]])) for n in range(num - 1)
    )
    return Problem(costs=costs, edges=edges, usages=usages, horizon=1, limit=LIMIT)


def best_of(problem: Problem) -> Found | None:
    moved = reparametrise(problem)
    start = Start(moved=moved, prices={}, bound=moved.bound, choice=(1,) * len(problem.costs))
    return Model(problem, start, float("inf")).best_fitting(60.0)


@pytest.mark.parametrize("over", [2, 5, 50])
def test_a_choice_that_is_over_by_less_than_its_tolerance_is_not_taken(over: int) -> None:
    problem = crowded(4, over)
    found = best_of(problem)
    assert found is not None and problem.fits(found.choice)
    choices = [choice for choice in product(range(2), repeat=4) if problem.fits(choice)]
    least = min(map(problem.cost, choices))
    assert found.bound <= least * (1 + 1e-9) and problem.cost(found.choice) <= 1.5 * least
