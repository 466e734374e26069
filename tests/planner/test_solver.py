"""The solver against brute force on small random problems, and the parts that its proof rests
on."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import numpy as np
import pulp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_problems import HORIZON, INF, array_of, choices_of, examples, numbers, peak, problems

from planner.solver.exact import ilp
from planner.solver.exact.ilp import solve
from planner.solver.problem.pairs import PairUsage, completed, with_pair_usages
from planner.solver.problem.problem import Array, Edge, Problem, Usage, spans_of
from planner.solver.relax.bound import CostLists, decode, reparametrise
from planner.solver.relax.handshakes import FlatCosts
from planner.solver.relax.memory_rows import priced_problem
from planner.solver.relax.peak import smallest_peak


def by_hand(problem: Problem, choice: tuple[int, ...]) -> tuple[float, list[float]]:
    """Cost and memory of a choice, by the definition."""
    cost = sum(problem.costs[n][i] for n, i in enumerate(choice))
    cost += sum(e.cost[choice[e.u], choice[e.v]] for e in problem.edges)
    held = [0.0] * problem.horizon
    for usage in problem.usages:
        nbytes = usage.nbytes[choice[usage.node]]
        held = [h + nbytes * usage.times(at) for at, h in enumerate(held)]
    return cost, held


# -------------------------------------------------------------------------------------- the problem


@examples
@given(problems(memory=True), st.randoms(use_true_random=False))
def test_cost_and_memory_are_their_definition(problem: Problem, random: object) -> None:
    for choice in choices_of(problem)[:20]:
        cost, held = by_hand(problem, choice)
        assert problem.cost(choice) == pytest.approx(cost, rel=1e-12)
        assert problem.memory(choice).tolist() == pytest.approx(held, rel=1e-12)


# --------------------------------------------------------------------------------------- the solver


def check(problem: Problem) -> None:
    """`solve` against all choices."""
    solution = solve(problem)
    possible = [c for c in choices_of(problem) if problem.cost(c) < INF]
    fitting = [c for c in possible if peak(problem, c) <= problem.limit * (1 + 1e-9)]
    if not fitting:
        check_infeasible(problem, possible)
        return
    best = min(map(problem.cost, fitting))
    assert solution.status == "optimal"
    assert solution.choice in fitting
    assert solution.objective == problem.cost(solution.choice)
    assert solution.objective == pytest.approx(best, rel=1e-6, abs=1e-9)
    assert solution.bound <= best * (1 + 1e-9) + 1e-12
    assert 0.0 <= solution.gap <= 1e-6
    assert solution.overflow == 0.0


def test_a_large_problem_that_nothing_fits_still_gets_the_leanest_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the exact way would take too long, what is left is a choice and a bound on every
    peak."""
    monkeypatch.setattr(ilp, "_FEW_PAIRS", 0)
    monkeypatch.setattr(ilp, "_PATIENCE", 0.0)
    nbytes = np.array([5.0, 3.0])
    problem = Problem(
        costs=(np.array([1.0, 2.0]), np.array([1.0, 2.0])),
        edges=(Edge(u=0, v=1, cost=np.zeros((2, 2))),),
        horizon=1,
        limit=4.0,
        usages=tuple(Usage(node=n, nbytes=nbytes, spans=((0, 1, 1.0),)) for n in (0, 1)),
    )
    solution = solve(problem)
    assert (solution.status, solution.choice, solution.objective) == ("infeasible", (1, 1), 4.0)
    assert (solution.lean_bound, solution.overflow) == (6.0, 2.0)


def check_infeasible(problem: Problem, possible: list[tuple[int, ...]]) -> None:
    solution = solve(problem)
    assert solution.status == "infeasible"
    if not possible:
        assert solution.objective == INF
        assert solution.gap == 0.0
        return
    assert solution.choice in possible
    assert solution.objective == problem.cost(solution.choice)
    least = min(peak(problem, c) for c in possible)
    assert solution.overflow == pytest.approx(peak(problem, solution.choice) - problem.limit)
    assert solution.overflow > 0.0
    assert solution.lean_bound <= least * (1 + 1e-9) + 1e-9
    assert solution.bound == INF  # of no choices that fit


@examples
@given(problems())
def test_without_a_limit_equals_brute_force(problem: Problem) -> None:
    check(problem)


@examples
@given(problems(memory=True), st.floats(0.0, 1.0))
def test_within_a_limit_equals_brute_force(problem: Problem, where: float) -> None:
    """A limit between the least peak there is and the peak of the free optimum: it binds, and
    something fits."""
    possible = [c for c in choices_of(problem) if problem.cost(c) < INF]
    if not possible:
        return
    least = min(peak(problem, c) for c in possible)
    free = peak(problem, min(possible, key=problem.cost))
    limit = least + where * (free - least)
    if limit > 1e-3:
        check(replace(problem, limit=limit))


@examples
@given(problems(memory=True), st.floats(0.1, 0.99))
def test_a_limit_that_cannot_be_met(problem: Problem, share: float) -> None:
    possible = [c for c in choices_of(problem) if problem.cost(c) < INF]
    least = min((peak(problem, c) for c in possible), default=0.0)
    if least > 0.0:
        check_infeasible(replace(problem, limit=share * least), possible)


def test_a_node_without_a_possible_choice() -> None:
    problem = Problem(
        costs=(np.array([INF, INF]), np.array([1.0, 2.0])),
        edges=(Edge(u=0, v=1, cost=np.zeros((2, 2))),),
    )
    check_infeasible(problem, [])


def test_pairs_that_contradict_each_other() -> None:
    """Each pair of nodes has a possible pair of choices, but three nodes of two colours around a
    ring have none."""
    unlike = np.array([[INF, 0.0], [0.0, INF]])
    edges = tuple(Edge(u=u, v=v, cost=unlike) for u, v in ((0, 1), (0, 2), (1, 2)))
    check_infeasible(Problem(costs=(np.zeros(2),) * 3, edges=edges), [])


def test_a_first_guess_that_is_impossible() -> None:
    """Greedy decoding walks into a dead end here; the integer program must still find the one
    possible colouring."""
    unlike = np.where(np.eye(3) > 0, INF, 0.0)
    costs = (
        np.array([5.0, 0.0, 9.0]),
        np.array([0.0, 5.0, 9.0]),
        np.array([0.0, 0.0, 9.0]),
        np.array([1.0, 1.0, 9.0]),
    )
    edges = tuple(Edge(u=u, v=v, cost=unlike) for u, v in ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3)))
    check(Problem(costs=costs, edges=edges))


def test_no_time_is_no_false_proof() -> None:
    """What is given with no time left is a choice with an honest bound, never called optimal
    unless they meet."""
    problem = hard()
    proved = solve(problem)
    assert proved.status == "optimal"
    for guess in (None, proved.choice):
        hurried = solve(problem, time_limit=0.0, guess=guess)
        assert 0.0 < hurried.bound <= proved.objective * (1 + 1e-9)
        assert hurried.objective >= proved.bound * (1 - 1e-9)
        assert (hurried.status == "optimal") == (hurried.gap <= 1e-6)


@examples
@given(problems(memory=True), st.floats(0.0, 1.0), st.integers(0, 12), st.booleans())
def test_stopped_at_any_time_it_claims_nothing_false(
    problem: Problem, where: float, polls: int, guessed: bool
) -> None:
    """Whatever is told after some looks at the clock holds: a bound is no more than the optimum,
    what is called infeasible is."""
    possible = [c for c in choices_of(problem) if problem.cost(c) < INF]
    if not possible:
        return
    peaks = sorted({peak(problem, c) for c in possible})
    problem = replace(
        problem, limit=max(1e-3, 0.9 * peaks[0] + where * (peaks[-1] - 0.9 * peaks[0]))
    )
    fitting = [c for c in possible if problem.fits(c)]
    looks = itertools.count()
    found = solve(
        problem, guess=possible[-1] if guessed else None, stopped=lambda: next(looks) >= polls
    )
    best = min(map(problem.cost, fitting), default=INF)
    assert found.bound <= best * (1 + 1e-9) + 1e-9
    if found.status in ("optimal", "feasible"):
        assert problem.fits(found.choice) and found.objective == problem.cost(found.choice)
    if found.status == "optimal":
        assert found.objective == pytest.approx(best, rel=1e-6, abs=1e-9)
    if found.status == "infeasible":
        assert not fitting


def hard() -> Problem:
    """Nine nodes, each at odds with all others: message passing alone leaves a gap."""
    rng = np.random.default_rng(3)
    costs = tuple(rng.integers(0, 50, 4).astype(float) for _ in range(9))
    pairs = itertools.combinations(range(9), 2)
    return Problem(
        costs=costs,
        edges=tuple(
            Edge(u=u, v=v, cost=rng.integers(0, 50, (4, 4)).astype(float)) for u, v in pairs
        ),
    )


def test_a_solver_that_ran_out_of_time_has_proved_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """HiGHS ends without a solution: that is no proof that there is none."""
    real = pulp.HiGHS
    best = solve(hard()).objective
    monkeypatch.setattr(pulp, "HiGHS", lambda **options: real(**options | {"timeLimit": 0.0}))
    hurried = solve(hard())
    assert hurried.bound <= best
    assert hurried.gap > 1e-3 and hurried.status == "feasible"


def test_a_program_too_large_to_write_down_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ilp, "_MOST", 10)
    left = solve(hard())
    assert left.status == "feasible" and left.num_variables == 0
    assert left.bound < left.objective == hard().cost(left.choice)


def test_a_good_guess_is_never_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    best = solve(hard())
    monkeypatch.setattr(ilp, "_MOST", 0)
    assert solve(hard(), guess=best.choice).objective == best.objective < solve(hard()).objective
    assert solve(hard(), guess=(0,) * 9).objective <= hard().cost((0,) * 9)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """HiGHS has a banner; `--json` must print one object and nothing else."""
    problem = Problem(
        costs=(np.array([1.0, 2.0]), np.array([2.0, 1.0])), edges=(Edge(u=0, v=1, cost=np.eye(2)),)
    )
    assert solve(problem).status == "optimal"
    assert capfd.readouterr() == ("", "")


# --------------------------------------------------------------------------------- what it rests on


@examples
@given(problems())
def test_message_passing_moves_costs_and_changes_none(problem: Problem) -> None:
    moved = reparametrise(problem)
    same = replace(
        problem,
        costs=moved.nodes,
        edges=tuple(
            Edge(u=e.u, v=e.v, cost=t) for e, t in zip(problem.edges, moved.edges, strict=True)
        ),
    )
    assert not any(np.isnan(table).any() for table in (*moved.nodes, *moved.edges))
    best = INF
    for choice in choices_of(problem):
        before, after = problem.cost(choice), same.cost(choice)
        assert (before == INF) == (after == INF)
        if before < INF:
            assert after == pytest.approx(before, rel=1e-9, abs=1e-9)
        best = min(best, before)
    assert moved.bound <= best + 1e-9
    assert (
        moved.bound
        >= sum(c.min() for c in problem.costs) + sum(e.cost.min() for e in problem.edges) - 1e-9
    )


@examples
@given(problems())
def test_decoding_gives_a_choice_that_no_single_change_betters(problem: Problem) -> None:
    choice = decode(problem, reparametrise(problem))
    assert len(choice) == len(problem.costs)
    assert all(0 <= i < len(c) for i, c in zip(choice, problem.costs, strict=True))
    for node, labels in enumerate(problem.costs):
        for label in range(len(labels)):
            changed = (*choice[:node], label, *choice[node + 1 :])
            assert problem.cost(changed) >= problem.cost(choice) - 1e-9


def test_message_passing_proves_a_chain() -> None:
    """On a tree the bound meets the optimum."""
    rng = np.random.default_rng(0)
    problem = Problem(
        costs=tuple(rng.random(3) for _ in range(6)),
        edges=tuple(Edge(u=i, v=i + 1, cost=rng.random((3, 3))) for i in range(5)),
    )
    assert reparametrise(problem).bound == pytest.approx(
        min(map(problem.cost, choices_of(problem))), rel=1e-6
    )


@examples
@given(
    problems(memory=True),
    st.dictionaries(st.integers(0, HORIZON - 1), st.floats(0.01, 3.0), max_size=3),
)
def test_prices_add_what_memory_costs(problem: Problem, prices: dict[int, float]) -> None:
    priced = priced_problem(problem, prices)
    for choice in choices_of(problem)[:20]:
        due = sum(price * problem.memory(choice)[at] for at, price in prices.items())
        assert priced.cost(choice) == pytest.approx(problem.cost(choice) + due, rel=1e-9)


@examples
@given(problems(memory=True), st.floats(0.3, 2.0))
def test_the_smallest_peak(problem: Problem, share: float) -> None:
    """Below or above the limit: a choice that has it, and no choice has less."""
    possible = [c for c in choices_of(problem) if problem.cost(c) < INF]
    if not possible:
        assert smallest_peak(replace(problem, limit=1.0), time.perf_counter() + 9).peak == INF
        return
    least = min(peak(problem, c) for c in possible)
    found = smallest_peak(replace(problem, limit=max(share * least, 0.5)), time.perf_counter() + 9)
    assert found.choice in possible
    assert found.peak <= least * (1 + 1e-6)
    if share < 1 and least > 0.5:
        assert peak(problem, found.choice) == pytest.approx(least, rel=1e-6)
        assert found.peak == pytest.approx(least, rel=1e-6)
        assert problem.memory(found.choice)[found.at] == pytest.approx(least, rel=1e-6)
    else:
        assert peak(problem, found.choice) <= max(share * least, 0.5) * (1 + 1e-5)


@examples
@given(problems(), st.data())
def test_memory_of_pairs_is_memory_of_nodes_between_them(
    problem: Problem, data: st.DataObject
) -> None:
    """For every choice of the nodes there is just one of the nodes between, with its cost and
    memory; no other is possible."""
    if not problem.edges:
        return
    pairs = []
    for edge in data.draw(st.lists(st.integers(0, len(problem.edges) - 1), min_size=1, max_size=2)):
        nbytes = array_of(data.draw, numbers, *problem.edges[edge].cost.shape)
        pairs.append(PairUsage(edge=edge, nbytes=nbytes, spans=((edge % 3, 4, 2.0),)))
    whole = with_pair_usages(problem, pairs)
    for choice in choices_of(problem)[:30]:
        cost, held = problem.cost(choice), problem.memory(choice).astype(float)
        for pair in pairs:
            edge = problem.edges[pair.edge]
            held += spans_profile(pair.spans) * pair.nbytes[choice[edge.u], choice[edge.v]]
        full = completed(whole, choice)
        assert full[: len(choice)] == choice
        assert whole.cost(full) == pytest.approx(cost)
        if cost < INF:
            assert whole.memory(full).tolist() == pytest.approx(held.tolist())
            for node in range(len(choice), len(full)):
                for other in set(range(len(whole.costs[node]))) - {full[node]}:
                    assert whole.cost((*full[:node], other, *full[node + 1 :])) == INF


def spans_profile(spans: tuple[tuple[int, int, float], ...]) -> np.ndarray:
    out = np.zeros(HORIZON)
    for start, end, times in spans:
        out[start:end] += times
    return out


@given(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=HORIZON, max_size=HORIZON))
def test_spans_are_their_profile(profile: list[float]) -> None:
    assert spans_profile(spans_of(np.array(profile))).tolist() == profile


def test_a_guess_that_is_no_choice_of_a_problem_without_any_is_left_aside() -> None:
    never = Edge(u=0, v=1, cost=np.array([[np.inf]]))
    problem = Problem(
        costs=(np.zeros(1), np.zeros(1)),
        edges=(never,),
        usages=(Usage(node=0, nbytes=np.ones(1), spans=((0, 1, 1.0),)),),
        horizon=1,
        limit=0.5,
    )
    assert solve(problem, guess=(0, 0)).status == "infeasible"


@examples
@given(problems())
def test_compiled_handshakes_give_the_same_bits(problem: Problem) -> None:
    """Those in numpy, for problems that are not worth the compiler: a plan does not depend on
    whether it has been imported."""

    def copies() -> tuple[list[Array], list[Array]]:
        return [c.copy() for c in problem.costs], [e.cost.copy() for e in problem.edges]

    listed, flat = CostLists(problem, *copies()), FlatCosts(problem, *copies())
    for forward in (True, False, True):
        assert flat.sweep(forward=forward) == listed.sweep(forward=forward)
    for mine, theirs in zip(flat.apart(), listed.apart(), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
