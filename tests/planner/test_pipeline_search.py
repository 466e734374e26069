"""The joint search: pipelines are chosen where they are faster, and never where they are not; where
the stages begin; what does not fit."""

from __future__ import annotations

import itertools
import random

import pytest
from small_plans import ask_for

from cost_models.cluster import load_cluster
from cost_models.errors import DoesNotFit
from planner.graph.layout import Mesh
from planner.predict.footprint import _Walk, memory_of_actions
from planner.predict.places import in_flight
from planner.schedules.registry import SCHEDULES, scheduled
from planner.search.budget import Budget
from planner.search.joint import joint_search
from planner.search.pipeline_planned import FoundPipeline
from planner.search.pipelines import Pipelines, Spec
from planner.search.search import Found
from planner.search.stage_costs import balanced
from planner.search.typed_pipelines import typed_pipeline
from planner.stages import CannotCut
from planner.trace.trace import trace
from planner.workload.ask import Ask, build


def test_stages_begin_where_the_slowest_is_fastest() -> None:
    draw = random.Random(0)
    for _ in range(60):
        seconds = [draw.random() for _ in range(draw.randint(3, 8))]
        cuts = sorted(draw.sample(range(1, len(seconds)), draw.randint(1, len(seconds) - 1)))
        stages = draw.randint(1, len(cuts) + 1)
        found = balanced(seconds, stages, cuts)
        every = ((0, *rest) for rest in itertools.combinations([c for c in cuts if c], stages - 1))
        assert _slowest(seconds, found) == pytest.approx(
            min(_slowest(seconds, begins) for begins in every)
        )
    with pytest.raises(CannotCut, match="at most 2 stages, got 3"):
        balanced([1.0, 1.0, 1.0], 3, [2])


def _slowest(seconds: list[float], begins: tuple[int, ...]) -> float:
    ends = (*begins[1:], len(seconds))
    return max(sum(seconds[a:b]) for a, b in zip(begins, ends, strict=True))


def test_microbatches_in_flight() -> None:
    for places, microbatches in ((4, 8), (4, 2), (2, 5)):
        schedule = scheduled("1f1b", places, microbatches)
        for place, order in enumerate(schedule.orders):
            assert in_flight(order) == min(microbatches, places - place)
        assert in_flight(scheduled("gpipe", places, microbatches).orders[0]) == microbatches


def test_a_typed_pipeline_holds_what_its_microbatches_leave() -> None:
    cluster = load_cluster("dgx-h100", num_devices=4)
    held = {}
    for schedule in ("1f1b", "gpipe"):
        spec = Spec(places=4, mesh=Mesh(("dp",), (1,)), microbatches=8, schedule=schedule)
        found = typed_pipeline(ask_for("gpt"), cluster, spec)
        held[schedule] = found.candidate.prediction.place_bytes
        stages = found.plan.summary["stages"]
        wanted = [4, 3, 2, 1] if schedule == "1f1b" else [8] * 4
        assert [stage["in_flight"] for stage in stages] == wanted
        assert found.plan.summary["fits"]
    assert all(a < b for a, b in zip(held["1f1b"], held["gpipe"], strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_memory_of_actions_is_that_of_walking_all_of_them(schedule: str) -> None:
    cluster = load_cluster("dgx-h100", num_devices=2)
    spec = Spec(places=2, mesh=Mesh(("dp",), (1,)), microbatches=8, schedule=schedule)
    for program in typed_pipeline(ask_for("gpt"), cluster, spec).candidate.pipeline.programs:
        walk = _Walk(program)
        for one in memory_of_actions(program):
            assert (walk.whole_action(one.action), tuple(walk.held)) == (one.during, one.after)


def test_a_pipeline_that_does_not_fit_names_its_stage() -> None:
    cluster = load_cluster("dgx-h100", num_devices=2).with_memory(2e4)
    spec = Spec(places=2, mesh=Mesh(("dp",), (1,)), microbatches=2)
    with pytest.raises(DoesNotFit, match=r"stage \d of 2 needs .* more than the .* allowed"):
        typed_pipeline(ask_for("gpt"), cluster, spec)


def test_stages_are_chosen_where_they_are_faster() -> None:
    """On a network that is slow beside its devices stages send less than any split does."""
    slow = load_cluster("gcp-v100", num_devices=4, num_nodes=4)
    sizes = {"layers": 8, "width": 1024, "heads": 8, "vocab": 64, "positions": 16, "seq": 16}
    ask = ask_for("gpt", 4, batch=32, dtype="float32", **sizes)
    found = joint_search(ask, slow, any_microbatches=True, budget=Budget.start(500))
    assert isinstance(found, FoundPipeline)
    rows = {row.name: row.step_time_s for row in found.plan.alternatives}
    assert found.plan.summary["step_time_s"] < (rows["no stages"] or 0)
    assert found.plan.solver.bound <= found.plan.summary["step_time_s"]


def test_no_stages_where_they_are_not() -> None:
    fast = load_cluster("dgx-h100", num_devices=2)
    found = joint_search(ask_for("mlp", 2), fast, any_microbatches=True)
    assert isinstance(found, Found)


def test_layers_of_an_lstm_are_spread_over_stages() -> None:
    """In microbatches the loss has one unit more, which sums ahead of all; the seconds of all others
    are still their own."""
    ask = Ask(
        model="lstm", batch=256, seq=16, settings={"layers": "4", "hidden": "512"},
        dtype="float32", num_devices=4,
    )  # fmt: skip
    cluster = load_cluster("dgx-h100", num_devices=4)
    made = Pipelines(ask, cluster, (), Budget.unlimited(), trace(lambda: build(ask), ask.model))
    spec = Spec(places=4, mesh=Mesh(("dp",), (1,)), microbatches=8)
    model, begins = made.model(8), made.begins(spec, scheduled("1f1b", 4, 8))
    assert len(model.units) > len(made.model(1).units)
    layers = [at for at in range(len(model.units)) if "shardwright.lstm" in model.at(at)]
    ends = (*begins[1:], len(model.units))
    assert [sum(b <= at < e for at in layers) for b, e in zip(begins, ends, strict=True)] == [1] * 4
