"""Large problems with memory of pairs: what is cut before that memory becomes nodes, against all
choices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.solver.exact import relaxed
from planner.solver.exact.relaxed import solve_with_pairs
from planner.solver.problem.pairs import PairUsage, completed, peak_with_pairs, with_pair_usages
from planner.solver.problem.problem import Problem
from tests.planner.small_problems import (
    INF,
    array_of,
    choices_of,
    examples,
    numbers,
    peak,
    problems,
)


@examples
@given(problems(memory=True), st.data(), st.sampled_from([0.5, 0.7, 0.9, 1.0]))
def test_a_choice_within_what_is_kept_fits_and_no_choice_is_below_the_bound(
    problem: Problem, data: st.DataObject, share: float
) -> None:
    pairs = [
        PairUsage(
            edge=number,
            nbytes=array_of(data.draw, numbers, *edge.cost.shape),
            spans=((number % 3, 4, 2.0),),
        )
        for number, edge in enumerate(problem.edges[:2])
    ]
    free = with_pair_usages(problem, pairs)
    possible = [
        (problem.cost(c), peak(free, completed(free, c)), c)
        for c in choices_of(problem)
        if problem.cost(c) < INF
    ]
    assert all(peak_with_pairs(problem, pairs, c) == pytest.approx(held) for _, held, c in possible)
    limit = max(share * max((held for _, held, _ in possible), default=0.0), 0.5)
    limited = Problem(
        costs=problem.costs,
        edges=problem.edges,
        usages=problem.usages,
        horizon=problem.horizon,
        limit=limit,
    )
    guess = data.draw(st.sampled_from(choices_of(problem)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relaxed, "_LARGE", 0)
        found = solve_with_pairs(
            limited, pairs, time_limit=20.0, guess=guess, stopped=lambda: False
        )
    fitting = {c: cost for cost, held, c in possible if held <= limit * (1 + 1e-9)}
    if not fitting:
        assert found.status in ("infeasible", "unknown")
        return
    best = min(fitting.values())
    assert found.objective == pytest.approx(fitting[found.choice[: len(problem.costs)]])
    assert found.bound <= best * (1 + 1e-6) + 1e-9 and best <= found.objective * (1 + 1e-9) + 1e-9
