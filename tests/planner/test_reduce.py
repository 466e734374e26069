"""The reductions against brute force: none changes the least cost within the limit, and the way
back is exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_problems import INF, choices_of, everything, least, problems

from planner.solver.problem.problem import Edge, Problem, Usage
from planner.solver.reduce.reduce import STEPS, Contradiction, reduce

examples = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check(problem: Problem, steps: tuple[str, ...]) -> None:
    best = least(problem)
    try:
        reduced = reduce(problem, steps)
    except Contradiction:
        assert best == INF
        return
    assert least(reduced.problem) + reduced.offset == pytest.approx(best, rel=1e-9, abs=1e-9)
    for choice in choices_of(reduced.problem)[:40]:
        whole = reduced.restore(choice)
        assert reduced.project(whole) == choice
        assert problem.cost(whole) == pytest.approx(
            reduced.problem.cost(choice) + reduced.offset, rel=1e-9, abs=1e-9
        )
        if problem.cost(whole) < INF:
            assert problem.fits(whole) == reduced.problem.fits(choice)


def limited(problem: Problem, where: float) -> Problem:
    """A limit between the least and the largest peak."""
    excess = everything(replace(problem, limit=0.0))[1]
    return replace(
        problem, limit=max(0.5, float(excess.min() + where * (excess.max() - excess.min())))
    )


@examples
@given(problems(memory=True), st.floats(0.0, 1.0))
def test_all_steps(problem: Problem, where: float) -> None:
    check(limited(problem, where), STEPS)


@pytest.mark.parametrize("step", STEPS)
@settings(examples, max_examples=30)
@given(problem=problems(memory=True), where=st.floats(0.0, 1.0))
def test_each_step_alone_and_all_but_it(step: str, problem: Problem, where: float) -> None:
    check(limited(problem, where), (step,))
    check(limited(problem, where), tuple(name for name in STEPS if name != step))


@examples
@given(problems())
def test_without_memory(problem: Problem) -> None:
    check(problem, STEPS)


def problem_of(
    costs: list[list[float]], edges: list[tuple[int, int, list[list[float]]]], **more: object
) -> Problem:
    return Problem(
        costs=tuple(map(np.array, costs)),
        edges=tuple(Edge(u=u, v=v, cost=np.array(c, dtype=float)) for u, v, c in edges),
        **more,
    )  # type: ignore[arg-type]


RING = [(0, 1, [[0, 3], [2, 9]]), (1, 2, [[0, 5], [4, 0]]), (0, 2, [[7, 0], [0, 8]])]


@pytest.mark.parametrize(
    ("step", "problem", "nodes", "states"),
    [
        ("forbid", problem_of([[1, INF], [0, 0]], []), 2, 3),
        ("arcs", problem_of([[1, 2], [0, 0]], [(0, 1, [[INF, INF], [0, 1]])]), 2, 3),
        ("fold", problem_of([[1], [0, 0]], [(0, 1, [[4, 5]])]), 1, 2),
        ("merge", problem_of([[1, 2], [0, 0]], [(0, 1, [[INF, 1], [0, INF]])]), 1, 2),
        ("dominate", problem_of([[0, 2, 0], [0, 0]], [(0, 1, [[0, 5], [1, 6], [5, 0]])]), 2, 4),
        ("leaf", problem_of([[1, 2], [0, 0]], [(0, 1, [[0, 1], [5, 0]])]), 0, 0),
        ("chain", problem_of([[1, 2], [0, 0], [0, 0]], RING), 2, 4),
    ],
)
def test_what_a_step_takes_out(step: str, problem: Problem, nodes: int, states: int) -> None:
    found = reduce(problem, (step,)).problem
    assert (len(found.costs), sum(map(len, found.costs))) == (nodes, states)
    check(problem, (step,))


def test_an_edge_that_is_a_sum_goes() -> None:
    problem = problem_of([[1, 2], [0, 0]], [(0, 1, [[1, 4], [2, 5]])])
    assert not reduce(problem, ("push",)).problem.edges
    check(problem, ("push",))
    assert reduce(problem_of([[1, 2], [0, 0]], [(0, 1, [[1, 4], [2, 6]])]), ("push",)).problem.edges


def test_parallel_edges_add_up_and_an_edge_to_itself_is_its_diagonal() -> None:
    edges = [(0, 1, [[1, 4], [2, 6]]), (1, 0, [[1, 0], [0, 3]]), (0, 0, [[5, 0], [0, 7]])]
    found = reduce(problem_of([[1, 2], [0, 0]], edges), ()).problem
    assert found.costs[0].tolist() == [6, 9]
    assert [e.cost.tolist() for e in found.edges] == [[[2, 4], [2, 9]]]
    check(problem_of([[1, 2], [0, 0]], edges), STEPS)


def test_times_that_say_nothing_go() -> None:
    """Three nodes one after another, two alive at once: of five times the two at which two hold
    matter, and with room for all none."""
    held = np.array([1.0, 5.0])
    usages = tuple(Usage(node=n, nbytes=held, spans=((n, n + 2, 1.0),)) for n in range(3))
    problem = Problem(costs=(np.array([9.0, 0.0]),) * 3, usages=usages, horizon=5, limit=8.0)
    assert reduce(problem, ("times",)).problem.horizon == 2
    assert reduce(replace(problem, limit=10.0), ("times",)).problem.horizon == 0
    check(problem, ("times",))


def test_what_does_not_fit_beside_the_least_of_all_others_goes() -> None:
    usages = tuple(
        Usage(node=n, nbytes=np.array([2.0, 5.0]), spans=((0, 1, 1.0),)) for n in range(2)
    )
    problem = Problem(costs=(np.array([9.0, 0.0]),) * 2, usages=usages, horizon=1, limit=6.0)
    assert [len(c) for c in reduce(problem, ("room",)).problem.costs] == [1, 1]
    with pytest.raises(Contradiction):
        reduce(replace(problem, limit=3.0), ("room",))
