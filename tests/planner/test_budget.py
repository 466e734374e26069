"""One budget for a search: what each part may take, and what is told where it is over. The clock
is a number that the test moves."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from small_plans import ask_for

from cost_models.cluster import load_cluster
from cost_models.errors import BadValue, DoesNotFit, NoPlan, UserError
from cost_models.machine import Cluster
from planner.report.report import proof_lines
from planner.search import misfit
from planner.search import search as module
from planner.search.budget import Budget
from planner.search.fitting import lean
from planner.search.meshes import meshes_of
from planner.search.proposals import Proposer
from planner.search.search import search

OVER = 1e9


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return load_cluster("dgx-h100", num_devices=8)


def test_what_is_left(clock: Clock) -> None:
    budget = Budget.start(10.0, clock)
    clock.now = 4.0
    assert (budget.left, budget.over()) == (6.0, False)
    assert budget.until(0.5).left == 1.0
    assert budget.rest().limit == 6.0
    clock.now = 10.0
    assert (budget.left, budget.over()) == (0.0, True)
    assert budget.rest().over()
    assert not Budget.unlimited().over() and Budget.unlimited().one_of(3).left == math.inf
    with pytest.raises(BadValue, match="give a positive number of seconds"):
        Budget.start(0.0)


def test_a_part_may_take_all_but_a_little_for_each_of_the_others(clock: Clock) -> None:
    budget = Budget.start(30.0, clock)
    assert budget.one_of(1).left == 30.0
    assert budget.one_of(6).left == 20.0  # 2 s for each of five
    clock.now = 24.0
    assert budget.one_of(5).left == pytest.approx(1.2)  # an even part
    assert budget.one_of(2).left == 4.0


def late_after(meshes: int, clock: Clock, patch: pytest.MonkeyPatch) -> None:
    """The time is over after so many meshes have been planned."""
    propose = Proposer.proposals
    count = 0

    def proposals(self: Proposer, *args: object, **options: object) -> object:
        nonlocal count
        found = propose(self, *args, **options)  # type: ignore[arg-type]
        count += 1
        clock.now = OVER if count >= meshes else clock.now
        return found

    patch.setattr(Proposer, "proposals", proposals)


@pytest.mark.parametrize("meshes", [1, 2])
def test_the_best_so_far_and_what_was_left_out(
    meshes: int, clock: Clock, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ["x".join(map(str, mesh.sizes)) for mesh in meshes_of(cluster)]
    late_after(meshes, clock, monkeypatch)
    plan = search(ask_for("mlp", 8, batch=64), cluster, budget=Budget.start(60.0, clock)).plan
    assert plan.summary["late"] == sizes[meshes:]
    assert plan.summary["time_limit_s"] == 60.0
    assert "x".join(map(str, plan.mesh.sizes)) in sizes[:meshes]
    assert (
        f"stopped at the time limit of 60 s; not searched: {', '.join(sizes[meshes:])}; raise "
        "--time-limit to search more" in proof_lines(plan)
    )
    assert {row.reason for row in plan.alternatives} == {"skipped at the time limit of 60 s"}


def test_a_limit_that_is_over_before_the_first_mesh_still_gives_a_plan(
    clock: Clock, cluster: Cluster
) -> None:
    """And a bound that holds: the whole search's optimum is not below it."""
    ask = ask_for("mlp", 8, batch=64)
    budget = Budget.start(60.0, clock)
    clock.now = OVER
    hurried, whole = search(ask, cluster, budget=budget).plan, search(ask, cluster).plan
    assert hurried.mesh.sizes == (8,)
    assert whole.summary.get("time_limit_s") is None and "late" not in whole.summary
    assert len(hurried.summary["late"]) == len(list(meshes_of(cluster))) - 1
    assert hurried.solver.bound <= hurried.summary["step_time_s"]


def test_where_nothing_that_fits_was_found_in_time_the_line_says_the_limit(
    clock: Clock, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_after(1, clock, monkeypatch)
    with pytest.raises(
        NoPlan,
        match=r"within the time limit of 60 s; the one with the least memory needs .* raise --time-limit to 120",
    ):
        search(
            ask_for("mlp", 8, batch=64),
            cluster.with_memory(1000),
            budget=Budget.start(60.0, clock),
        )


def error_of(search_: Callable[[], object]) -> UserError:
    with pytest.raises(UserError) as caught:
        search_()
    return caught.value


def test_the_search_for_what_fits_ends_in_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look costs ten seconds. Of a batch that no device holds there are dozens to look at."""
    looks: list[int] = []
    quickly = misfit._may_fit

    def look(*args: object) -> bool:
        clock.now += 10.0
        looks.append(1)
        return quickly(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(misfit, "_may_fit", look)
    on = load_cluster("cpu", num_devices=2)
    small = on.with_memory(10_000)
    error = error_of(
        lambda: search(ask_for("mlp", 2, batch=2**30), small, budget=Budget.start(25.0, clock))
    )
    assert isinstance(error, DoesNotFit) and "\n" not in str(error)
    assert "the time limit of 25 s was reached before a change that fits was found" in str(error)
    assert len(looks) == 3


def test_what_is_told_to_fit_was_searched_as_it_would_be_typed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the mesh and pins of the command; what `_may_fit` hopes for is not enough. More
    microbatches, which would fit, are ruled out."""
    searched: list[tuple[int | None, object]] = []
    chosen = module._chosen

    def record(
        mesh: object, ask: object, on: object, pins: object, more: bool, budget: object
    ) -> object:
        if more:
            raise NoPlan("not in microbatches")
        searched.append((ask.batch, pins))  # type: ignore[attr-defined]
        if len(searched) == 1:
            raise NoPlan("not this one")
        return chosen(mesh, ask, on, pins, more, budget)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_chosen", record)
    monkeypatch.setattr(misfit, "_may_fit", lambda budget, ask, *rest: ask.batch <= 128)
    on = load_cluster("cpu", num_devices=2)
    plan = search(ask_for("mlp", 2, batch=64), on)
    small = on.with_memory(1.06 * plan.plan.summary["memory_bytes"]["total"])
    error = error_of(lambda: search(ask_for("mlp", 2, batch=1024), small))
    assert "what fits: --batch 64" in str(error)
    assert [batch for batch, _ in searched][:2] == [128, 64]


def test_a_lean_plan_needs_no_more_than_the_fastest(cluster: Cluster) -> None:
    ask = ask_for("mlp", 8, batch=64)
    found = search(ask, cluster)
    proposer = Proposer(ask, found.model, found.workload, cluster.with_memory(1000), ())
    for mesh in meshes_of(cluster):
        leanest = lean(proposer, mesh)
        assert (
            leanest.prediction.total_memory_bytes
            <= found.plan.summary["memory_bytes"]["total"] * 1.001
        )
