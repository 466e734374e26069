"""Large problems with memory of pairs: what is cut before that memory becomes nodes, against all
choices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.solver.exact import relaxed
from planner.solver.exact.ilp import solve
from planner.solver.exact.relaxed import solve_with_pairs
from planner.solver.problem.pairs import PairUsage, completed, peak_with_pairs, with_pair_usages
from planner.solver.problem.problem import Problem
from planner.solver.problem.solution import Solution
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


def test_a_bound_of_what_is_kept_holds_up_to_what_it_was_kept_for() -> None:
    """Choices left out cost more than `upper`: the bound on those kept holds only below it."""

    def bound(objective: float, inside: float) -> float:
        found = Solution(
            choice=(0,),
            objective=objective,
            bound=inside,
            status="feasible",
            num_variables=0,
            time_s=0.0,
        )
        return relaxed._Cheap(bound=1.0, upper=1.1, kept=[]).bound_of(found)

    assert bound(1.3, 1.05) == 1.05
    assert bound(1.3, 1.2) == 1.1
    assert bound(1.08, 1.08) == 1.08
    assert bound(1.3, 0.9) == 1.0


def test_more_strategies_are_tried_only_as_long_as_they_may_help(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each round keeps more strategies, and takes longer: a choice near the bound ends them, and
    so do rounds that do not improve it."""
    tried: list[float] = []

    def rounds(costs: list[float]) -> list[float]:
        tried.clear()

        def solved(*args: object) -> Solution | None:
            tried.append(costs[len(tried)])
            return None if tried[-1] == INF else replace(one, objective=tried[-1], bound=1.0)

        monkeypatch.setattr(relaxed, "_solved", solved)
        solve_with_pairs(problem, [], time_limit=60.0, guess=(0,), stopped=lambda: False)
        return list(tried)

    problem = Problem(costs=(np.array([1.0]),), edges=(), usages=(), horizon=1, limit=1.0)
    one = solve(problem)
    cheap = [
        relaxed._Cheap(bound=1.0, upper=1.0 + share, kept=[np.array([0])])
        for share in (1e-4, 1e-3, 5e-3, 0.02, 0.1)
    ]
    monkeypatch.setattr(relaxed, "_LARGE", 0)
    monkeypatch.setattr(relaxed, "_cheap", lambda *args: iter(cheap))
    assert rounds([INF, 1.004, 1.0, 1.0, 1.0]) == [INF, 1.004]
    assert rounds([1.02, 1.02, 1.0, 1.0, 1.0]) == [1.02, 1.02]
    assert rounds([1.02, 1.01, 1.008, 1.0, 1.0]) == [1.02, 1.01, 1.008, 1.0]
    assert rounds([1.5, 1.5, 1.5, 1.0, 1.0]) == [1.5, 1.5, 1.5]
