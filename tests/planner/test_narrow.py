"""Narrowing against brute force: the best choice, or one as good, is left; and `solve` goes this way where there are many pairs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_problems import INF, everything, least, problems

import planner.solver.bound
import planner.solver.ilp
from planner.solver import Problem, solve
from planner.solver.level import Level
from planner.solver.narrow import narrow
from planner.solver.reduce import STEPS, Contradiction

examples = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@examples
@given(problem=problems(), share=st.sampled_from([0.5, 1.0, 1.5, INF]))
def test_what_is_left_has_the_best_choice_below_a_known_cost(problem: Problem, share: float) -> None:
    best = least(problem)
    upper = share * best if share < INF and best < INF else INF
    try:
        left, choice = narrow(Level.of(problem, ["forbid", "arcs"]), STEPS, upper)
    except Contradiction:
        assert best == INF or best > upper
        return
    inside = least(left.problem) if left.problem.costs else 0.0
    known = min(upper, INF if choice is None else problem.cost(choice))
    assert min(inside + left.offset, known) == pytest.approx(min(best, known), rel=1e-9, abs=1e-9)


@examples
@given(problem=problems(memory=True), share=st.sampled_from([0.3, 0.6, 0.9, INF]))
def test_large_problems_are_solved_as_small_ones(problem: Problem, share: float) -> None:
    held = everything(replace(problem, limit=0.0))[1]
    problem = replace(problem, limit=INF if share == INF else max(0.5, float(held.min() + share * (held.max() - held.min()))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner.solver.ilp, "_LARGE", 0)
        patch.setattr(planner.solver.bound, "COMPILED", 0)
        patch.setattr(planner.solver.ilp, "COMPILED", 0)
        solution = solve(problem)
    best = least(problem)
    assert (solution.status in ("infeasible", "unknown")) == (best == INF)
    if best < INF:
        assert solution.status == "optimal"
        assert problem.cost(solution.choice) == pytest.approx(best, rel=1e-9, abs=1e-9)
        assert solution.bound <= best + 1e-9
