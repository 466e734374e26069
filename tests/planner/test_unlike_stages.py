"""Pipelines whose places have unlike numbers of devices: where their stages begin, and their files."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.cluster import load_cluster
from cost_models.errors import BadPlan, BadValue, NoPlan
from planner.graph.layout import Mesh
from planner.plans.pipeline_replay import clusters_of, pipeline_of
from planner.plans.plan_file import plan_text, read_plan, write_plan
from planner.search.pipelines import Spec
from planner.search.stage_costs import balanced
from planner.search.typed_pipelines import FoundPipeline, typed_pipeline
from planner.workload.ask import Ask

TWO, ONE = Mesh(("dp",), (2,)), Mesh(("dp",), (1,))


def _found(*meshes: Mesh, gpus: int = 0, layers: int = 9) -> FoundPipeline:
    spec = Spec(places=len(meshes), mesh=meshes, microbatches=4)
    ask = Ask(
        model="mlp",
        batch=4096,
        seq=None,
        dtype="float32",
        settings={"inputs": "1024", "hidden": "1024", "layers": str(layers), "outputs": "1024"},
        num_devices=spec.num_devices,
    )
    return typed_pipeline(ask, load_cluster("dgx-h100", num_devices=gpus or spec.num_devices), spec)


@given(
    seconds=st.lists(st.integers(0, 20), min_size=4, max_size=8),
    devices=st.lists(st.integers(1, 4), min_size=1, max_size=4),
)
@settings(max_examples=100, deadline=None)
def test_the_slowest_stage_is_as_fast_as_the_best_of_all_cuts(
    seconds: list[int], devices: list[int]
) -> None:
    def slowest(begins: tuple[int, ...]) -> float:
        ends = (*begins[1:], len(seconds))
        return max(
            sum(seconds[a:b]) / count for a, b, count in zip(begins, ends, devices, strict=True)
        )

    units = range(len(seconds))
    every = (slowest((0, *cut)) for cut in itertools.combinations(units[1:], len(devices) - 1))
    runs = [[one / count for one in seconds] for count in devices]
    begins = balanced(seconds, len(devices), units, runs)
    assert slowest(begins) == pytest.approx(min(every), rel=1e-12)


@pytest.mark.parametrize("meshes", [(TWO, ONE), (ONE, TWO)])
def test_a_place_of_two_devices_has_more_layers(meshes: tuple[Mesh, ...]) -> None:
    """Of 10 like products, two devices have more: 7 if they come first, 6 of the last (the first one
    has no gradient of its input, and half of a product takes more than half of its time)."""
    rows = _found(*meshes).plan.summary["stages"]
    layers = [len(row["layers"]) for row in rows]
    wanted = [7, 3] if meshes[0] is TWO else [4, 6]
    assert [layers[0], 10 - layers[0]] == wanted


def test_meshes_that_are_given_one_by_one_but_equal_make_the_plan_of_one_mesh() -> None:
    def text(spec: Spec) -> str:
        ask = Ask(model="mlp", batch=64, seq=None, dtype="float32", settings={}, num_devices=4)
        plan = typed_pipeline(ask, load_cluster("dgx-h100", num_devices=4), spec).plan
        return re.sub(r'"(planning_)?time_s": [^,\n]*', "", plan_text(plan))

    one = text(Spec(places=2, mesh=TWO, microbatches=2))
    assert one == text(Spec(places=2, mesh=(TWO, TWO), microbatches=2))


def test_a_plan_of_unlike_places_is_read_back_and_lowered_again(tmp_path: Path) -> None:
    found = _found(TWO, TWO, ONE, layers=10)
    plan, path = found.plan, tmp_path / "plan.json"
    assert plan.mesh == Mesh(("devices",), (5,))
    write_plan(plan, path)
    back = read_plan(path)
    assert (back.pipeline, back.mesh) == (plan.pipeline, plan.mesh)
    assert back.summary == plan.summary
    assert [one.num_devices for one in clusters_of(back)] == [2, 2, 1]
    made, first = found.candidate.pipeline, pipeline_of(back)
    assert first.firsts == made.firsts == (0, 2, 4)
    assert first.transfers == made.transfers
    for one, other in zip(first.programs, made.programs, strict=True):
        assert one.bodies == other.bodies


def test_words_of_more_axes_than_a_stage_has_are_damage(tmp_path: Path) -> None:
    plan, path = _found(TWO, ONE).plan, tmp_path / "plan.json"
    plan.summary["groups"][0]["ops"] += ["batch"]
    write_plan(plan, path)
    with pytest.raises(BadPlan, match="does not have a value for each of 2 axes"):
        read_plan(path)


def test_what_cannot_be_is_refused_in_one_line() -> None:
    with pytest.raises(BadValue, match=r"^2 meshes for 3 places: give one mesh for all places, or"):
        Spec(places=3, mesh=(TWO, ONE), microbatches=4)
    with pytest.raises(NoPlan, match=r"^3 stages on 2\+2\+1 devices need 5, there are 4$"):
        _found(TWO, TWO, ONE, gpus=4)
