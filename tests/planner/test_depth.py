"""Candidates of deep models ranked by shallow programs: what is drawn on is near what the whole
gives, and the plan told is whole."""

from __future__ import annotations

import pytest

import planner.trace.repeated
from cost_models.cluster import load_cluster
from cost_models.machine import Cluster
from planner.plans.models import modelled
from planner.plans.replay import shallow_of
from planner.search.search import Found, search
from planner.trace.trace import trace
from planner.workload.ask import Ask, build

SIZES = {"width": "64", "heads": "4", "vocab": "512", "positions": "64"}


def ask(model: str, layers: int, **sizes: str) -> Ask:
    return Ask(
        model=model,
        batch=32,
        seq=32,
        settings={"layers": str(layers), **sizes},
        dtype="float32",
        num_devices=4,
    )


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return load_cluster("dgx-h100", num_devices=4)


@pytest.fixture(scope="module")
def both(cluster: Cluster) -> tuple[Found, Found]:
    """The same search, its candidates ranked by shallow programs and by whole ones."""
    asked = ask("gpt", 24, **SIZES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner.trace.repeated, "_DEEP", 100)
        return search(asked, cluster), _whole(asked, cluster)


def _whole(asked: Ask, cluster: Cluster) -> Found:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner.trace.repeated, "_DEEP", 1_000_000)
        return search(asked, cluster)


def test_the_plan_is_the_one_that_whole_programs_choose(both: tuple[Found, Found]) -> None:
    shallow, whole = both
    assert (shallow.plan.mesh, shallow.plan.options) == (whole.plan.mesh, whole.plan.options)
    assert shallow.program == whole.program
    assert shallow.plan.summary["step_time_s"] == whole.plan.summary["step_time_s"]


def test_extrapolation_is_near_the_whole(both: tuple[Found, Found]) -> None:
    shallow, whole = both
    assert [c.whole for c in shallow.candidates] == [False] * len(shallow.candidates)
    assert all(c.whole for c in whole.candidates)
    assert shallow.plan.summary["extrapolated_from"] == [6, 10]
    assert "extrapolated_from" not in whole.plan.summary
    for near, exact in zip(shallow.candidates, whole.candidates, strict=True):
        assert near.mesh == exact.mesh
        assert near.prediction.step_time_s == pytest.approx(exact.prediction.step_time_s, rel=0.02)
        assert near.prediction.total_memory_bytes == pytest.approx(
            exact.prediction.total_memory_bytes, rel=0.02
        )
    for near, exact in zip(shallow.plan.alternatives, whole.plan.alternatives, strict=True):
        assert near.step_time_s == pytest.approx(exact.step_time_s, rel=0.02)


@pytest.mark.parametrize(
    ("model", "sizes"),
    [("t5", {"width": "32", "heads": "4", "vocab": "64"}), ("moe", {"vocab": "64"})],
)
def test_shallow_models_have_the_classes_of_the_whole(
    model: str, sizes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner.trace.repeated, "_DEEP", 100)
    asked = ask(model, 12, **sizes)
    traced = trace(lambda: build(asked), model)
    shallow = shallow_of(traced, modelled(traced))
    assert shallow is not None
    assert (shallow.depths, shallow.depth) == ((6, 10), 12)
    whole = trace(lambda: build(ask(model, 10, **sizes)), model, whole=True).graph
    assert shallow.models[1].graph.digest() == whole.digest()
