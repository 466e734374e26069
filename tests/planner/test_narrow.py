"""Narrowing against brute force: the best choice, or one as good, is left; and `solve` goes this
way where there are many pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_problems import INF, everything, least, problems

import planner.solver.exact.ilp
import planner.solver.relax.bound
from planner.solver.exact.ilp import solve
from planner.solver.large.incumbent import Incumbent
from planner.solver.large.narrow import narrow
from planner.solver.large.within import narrow_within
from planner.solver.problem.problem import Edge, Problem, Usage
from planner.solver.reduce.level import Level
from planner.solver.reduce.reduce import STEPS, Contradiction

examples = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@examples
@given(problem=problems(), share=st.sampled_from([0.5, 1.0, 1.5, INF]))
def test_what_is_left_has_the_best_choice_below_a_known_cost(
    problem: Problem, share: float
) -> None:
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


def limited(problem: Problem, share: float) -> Problem:
    held = everything(replace(problem, limit=0.0))[1]
    return replace(
        problem,
        limit=INF
        if share == INF
        else max(0.5, float(held.min() + share * (held.max() - held.min()))),
    )


@examples
@given(problem=problems(memory=True), share=st.sampled_from([0.3, 0.6, 0.9]))
def test_what_is_left_within_a_limit_has_the_best_choice_too(
    problem: Problem, share: float
) -> None:
    problem = limited(problem, share)
    best, known = least(problem), Incumbent(problem, INF, lambda cost, bound: None, lambda: False)
    try:
        left = narrow_within(Level.of(problem, ["forbid", "arcs"]), STEPS, known, few=0)
    except Contradiction:
        assert known.cost == pytest.approx(best, rel=1e-9, abs=1e-9)  # infinite, where nothing fits
        return
    inside = least(left.problem) if left.problem.costs else 0.0
    assert known.bound <= best * (1 + 1e-9) + 1e-9
    assert min(inside + left.offset, known.cost) == pytest.approx(best, rel=1e-9, abs=1e-9)


@examples
@given(problem=problems(memory=True), share=st.sampled_from([0.3, 0.6, 0.9, INF]))
def test_large_problems_are_solved_as_small_ones(problem: Problem, share: float) -> None:
    problem = limited(problem, share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner.solver.exact.ilp, "_LARGE", 0)
        patch.setattr(planner.solver.relax.bound, "COMPILED", 0)
        patch.setattr(planner.solver.exact.ilp, "COMPILED", 0)
        patch.setattr(planner.solver.exact.ilp, "_NARROWED", 0)
        solution = solve(problem)
    best = least(problem)
    assert (solution.status in ("infeasible", "unknown")) == (best == INF)
    if best < INF:
        assert solution.objective == problem.cost(solution.choice) >= solution.bound
        assert problem.fits(solution.choice) and solution.bound <= best + 1e-9
        assert share < INF or solution.status == "optimal"


def test_a_large_limited_problem_is_nearly_solved() -> None:
    """No integer program follows; on a ring with chords prices and annealing come near the best
    by themselves."""
    rng = np.random.default_rng(5)
    edges = [
        Edge(u=u, v=v, cost=rng.integers(0, 60, (6, 6)) * 1.0)
        for u in range(16)
        for v in (u + 1, u + 3)
        if v < 16
    ]
    problem = Problem(
        costs=tuple(rng.integers(0, 60, 6) * 1.0 for _ in range(16)),
        edges=tuple(edges),
        horizon=16,
        limit=100,
        usages=tuple(
            Usage(node=n, nbytes=rng.integers(1, 40, 6) * 1.0, spans=((n, min(n + 6, 16), 1),))
            for n in range(16)
        ),
    )
    exact = solve(problem)
    known = Incumbent(problem, INF, lambda cost, bound: None, lambda: False)
    narrow_within(Level.of(problem, ["forbid", "arcs"]), STEPS, known, few=0)
    assert exact.status == "optimal" and not problem.fits(solve(replace(problem, limit=INF)).choice)
    assert exact.objective <= known.cost <= 1.05 * exact.objective
    assert 0.9 * exact.objective <= known.bound <= exact.objective
