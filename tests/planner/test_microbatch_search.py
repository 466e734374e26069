"""The number of microbatches that a search chooses."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from cost_models.cluster import load_cluster
from cost_models.errors import DoesNotFit
from cost_models.machine import Cluster
from planner.graph.layout import Mesh
from planner.search.budget import Budget
from planner.search.microbatches import best_number, doublings
from planner.search.over_numbers import _Numbers
from planner.search.search import Found, search
from planner.search.searched import Searched, meshes_to_search, proposer_of
from planner.strategy.pins import recompute_pins
from planner.trace.trace import trace
from planner.workload.ask import Ask, build

_GPT = {"layers": "2", "width": "64", "heads": "4", "vocab": "64", "positions": "64"}
_ONLY_KEPT = recompute_pins("none")


def _ask(**settings: str) -> Ask:
    return Ask(
        model="gpt", batch=16, seq=64, settings={**_GPT, **settings}, dtype="float32",
        num_devices=1, memory_headroom=0.0,
    )  # fmt: skip


def _limited(nbytes: float) -> Cluster:
    return load_cluster("dgx-h100", num_devices=1).with_memory(nbytes)


def _held(found: Found) -> int:
    return int(found.plan.summary["memory_bytes"]["total"])


@pytest.fixture(scope="module")
def plain() -> Found:
    return search(_ask(), load_cluster("dgx-h100", num_devices=1), any_microbatches=True)


def test_one_microbatch_if_memory_is_not_short(plain: Found) -> None:
    assert plain.plan.ask.microbatches == 1


def test_more_microbatches_if_memory_is_short(plain: Found) -> None:
    limit = _limited(0.5 * _held(plain))
    with pytest.raises(DoesNotFit, match=r"what fits: --microbatches 4$"):
        search(_ask(), limit, pins=_ONLY_KEPT, mesh=plain.plan.mesh)
    found = search(_ask(), limit, pins=_ONLY_KEPT, any_microbatches=True)
    assert found.plan.ask.microbatches > 1
    assert found.plan.summary["microbatches"] == found.plan.ask.microbatches
    assert _held(found) <= 0.5 * _held(plain)
    # The next number that would be tried is no faster: the search stopped for a reason.
    more = replace(found.plan.ask, microbatches=2 * found.plan.ask.microbatches)
    slower = search(more, limit, pins=_ONLY_KEPT)
    assert slower.plan.summary["step_time_s"] > found.plan.summary["step_time_s"] * 0.995


def test_a_batch_that_is_far_too_large_is_not_run_in_one(plain: Found) -> None:
    """The search begins near the number that fits; half and twice as many are no faster."""
    limit = _limited(0.3 * _held(plain))
    found = search(_ask(), limit, any_microbatches=True)
    number = found.plan.ask.microbatches
    assert number > 1 and _held(found) <= 0.3 * _held(plain)
    for other in (number // 2, number * 2):
        try:
            plan = search(replace(_ask(), microbatches=other), limit).plan
        except DoesNotFit:
            continue
        assert plan.summary["step_time_s"] > found.plan.summary["step_time_s"] * 0.98


def test_a_batch_that_cannot_be_cut_says_why() -> None:
    ask = Ask(
        model="resnet", batch=2, seq=None, settings={"image": "32", "classes": "10", "depth": "10", "width": "8"},
        dtype="float32", num_devices=1, memory_headroom=0.0,
    )  # fmt: skip
    cluster = load_cluster("dgx-h100", num_devices=1)
    whole = search(ask, cluster, pins=_ONLY_KEPT, any_microbatches=True)
    with pytest.raises(DoesNotFit, match="statistics over all samples"):
        search(ask, _limited(0.6 * _held(whole)), pins=_ONLY_KEPT, any_microbatches=True)


def test_what_fits_is_a_batch_that_can_be_cut(plain: Found) -> None:
    ask = replace(_ask(), batch=20, microbatches=4)  # half of 20 cannot be cut into 4
    with pytest.raises(DoesNotFit, match="gpt"):
        search(ask, _limited(0.2 * _held(plain)), mesh=plain.plan.mesh)


def test_numbers_tried_double() -> None:
    assert [*doublings((1, 2, 3, 4, 6, 12))] == [2, 4, 12]
    assert [*doublings((1, 3, 5, 15))] == [3, 15]
    assert [*doublings((1,))] == []


def test_meshes_that_a_bound_rules_out_are_not_searched() -> None:
    """Those on which a faster plan is known are not ruled out."""
    ask = replace(_ask(), num_devices=4)
    cluster = load_cluster("dgx-h100", num_devices=4)
    traced = trace(lambda: build(ask), ask.model)
    first = proposer_of(ask, cluster, (), Budget.unlimited(), traced)
    numbers = _Numbers(first, None, traced)
    meshes = meshes_to_search(first, None)
    found = numbers.search(2, meshes)
    assert found.best.mesh in numbers.better(2, meshes, found.step_time_s * (1 + 1e-9))
    assert numbers.better(2, meshes, 1.0) == meshes
    assert numbers.better(2, meshes, 0.1 * found.step_time_s) == []


def test_meshes_of_the_best_proposals_are_tried_with_another_number() -> None:
    """Of mixtral-8x7b on 16 A100, none of the candidates in 2 microbatches was on the mesh of the
    best plan in one: its proposals in 2 had to be made to fit."""
    names = "abcd"
    meshes = [Mesh((name,), (2 + number,)) for number, name in enumerate(names)]

    def candidate(mesh: Mesh, step: float, fits: bool) -> Any:
        prediction = SimpleNamespace(step_time_s=step, total_memory_bytes=step)
        return SimpleNamespace(mesh=mesh, prediction=prediction, fits=lambda capacity: fits)

    def proposal(mesh: Mesh, objective: float) -> Any:
        return SimpleNamespace(mesh=mesh, solution=SimpleNamespace(objective=objective))

    proposer: Any = SimpleNamespace(capacity=1.0)
    slow, misfit, fast = (
        candidate(meshes[at], step, fits)
        for at, step, fits in ((0, 3.0, True), (1, 1.0, False), (2, 2.0, True))
    )
    searched = Searched(
        proposer=proposer,
        proposals=[proposal(meshes[1], 2.0), proposal(meshes[3], 1.0)],
        left_out={},
        candidates=[slow, misfit, fast],
        best=fast,
    )
    tried: list[tuple[int, list[Mesh]]] = []

    def at(number: int, meshes: list[Mesh]) -> Searched:
        tried.append((number, meshes))
        return searched

    def better(number: int, meshes: list[Mesh], step: float) -> list[Mesh]:
        return meshes[1:] if number == 1 else []

    best_number(
        at, (1, 2, 4), Budget.unlimited(), start=2, ideal=1.0, first=searched, better=better
    )
    assert tried == [(1, [meshes[0], meshes[3], meshes[1]])]
