"""Large messages of backward run beside products on devices that overlap, and only there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_plans import Planned, ask_for, planned

import planner.lowering.early
from cost_models.cluster import load_cluster
from cost_models.device import MATRIX_KINDS
from planner.lowering.early import started_early
from planner.lowering.lower import lower
from planner.predict.predict import predict
from planner.program.program import Communicate, Compute, Instruction, Ref, reads, writes


def tensor(
    model: str = "mlp", mesh: str = "tp=4", pins: tuple[str, ...] = ("*=tensor",), **sizes: int
) -> Planned:
    return planned(
        ask_for(model, dtype="float32", **sizes),
        mesh,
        pins,
        cluster=load_cluster("dgx-h100", num_devices=4),
    )


@pytest.mark.parametrize("model", ["mlp", "gpt", "llama"])
def test_an_input_gradient_is_summed_beside_products(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """Every asynchronous message of backward has a product between its start and its first
    reader; the step is shorter for it, and the instructions are the same."""
    monkeypatch.setattr(planner.lowering.early, "SMALL", 0)
    plan = tensor(model)
    instructions = plan.program.instructions
    messages = [
        (at, i)
        for at, i in enumerate(instructions)
        if isinstance(i, Communicate) and i.phase == "backward"
    ]
    beside = [(at, i) for at, i in messages if i.asynchronous]
    assert beside
    for at, message in beside:
        first = next(
            later
            for later in range(at + 1, len(instructions))
            if set(message.results) & set(reads(instructions[later]))
        )
        assert any(i.kind != "view" for i in instructions[at + 1 : first] if isinstance(i, Compute))
    monkeypatch.setattr(planner.lowering.early, "_large", lambda instructions: {})
    waiting = lower(plan.model, plan.mesh, plan.choices, plan.table.costing)
    assert {i.id for i in waiting.instructions} == {i.id for i in instructions}
    cluster = replace(plan.cluster, device=replace(plan.cluster.device, launch_overhead=0.0))
    assert predict(plan.program, cluster).step_time_s < predict(waiting, cluster).step_time_s


def test_a_device_that_does_not_overlap_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner.lowering.early, "SMALL", 0)
    plan = planned(ask_for("mlp"), "tp=4", ("*=tensor",))
    assert plan.cluster.device.overlap == 0
    assert not [
        i.id
        for i in plan.program.instructions
        if isinstance(i, Communicate) and i.phase == "backward" and i.asynchronous
    ]


def compute(number: int, *read: int, kind: str = "gemm") -> Compute:
    return Compute(
        id=f"c{number}",
        op="aten.mm.default",
        args=tuple(map(Ref, read)),
        results=(number,),
        shapes=((),),
        dtypes=("float32",),
        kind=kind,
        phase="backward",
    )


def message(number: int, read: int, phase: str = "backward") -> Communicate:
    return Communicate(
        id=f"m{number}",
        kind="all_reduce",
        axes=(0,),
        sources=(read,),
        results=(number,),
        expanded=((),),
        shapes=((),),
        dtypes=("float32",),
        phase=phase,
        nbytes=1 << 20,
        asynchronous=phase == "update",
    )


def order(instructions: list[Instruction]) -> str:
    out = started_early(instructions, overlaps=True)
    seen: set[int] = {0}
    for instruction in out:
        assert seen.issuperset(reads(instruction)), "written before it is read"
        seen.update(writes(instruction))
    assert {i.id for i in out} == {i.id for i in instructions}
    return " ".join(
        i.id + ("*" if isinstance(i, Communicate) and i.asynchronous else "") for i in out
    )


def test_the_order_by_hand() -> None:
    """c1 makes what is sent as m9 and read by c9; * is asynchronous."""
    assert order([compute(1, 0), compute(2, 0), message(9, 1), compute(10, 9)]) == "c1 m9* c2 c10"
    assert (
        order([compute(2, 0), compute(1, 0), message(9, 1), compute(10, 9)]) == "c1 m9* c2 c10"
    ), "what stands before moves behind"
    assert order([compute(2, 0), compute(1, 2), message(9, 1), compute(10, 9)]) == "c2 c1 m9 c10", (
        "but not what it is made of"
    )
    assert (
        order(
            [compute(2, 0), message(3, 2, "update"), compute(1, 0), message(9, 1), compute(10, 9)]
        )
        == "c1 m9* c2 m3* c10"
    )
    small = [compute(n, 0) for n in (2, 3, 4, 5)]
    assert (
        order([*small, compute(1, 0), message(9, 1), compute(10, 9)]) == "c2 c1 m9* c3 c4 c5 c10"
    ), "three products at most"
    light = compute(2, 0, kind="elementwise")
    assert order([light, compute(1, 0), message(9, 1), compute(10, 9)]) == "c2 c1 m9 c10", (
        "a product, or nothing"
    )
    first = [compute(2, 0), compute(1, 0), message(9, 1), compute(10, 9)]
    assert (
        order([*first, compute(11, 0), message(12, 11), compute(13, 12)])
        == "c1 m9* c2 c11 m12* c10 c13"
    ), "c2 is not taken from m9"
    assert set(MATRIX_KINDS) >= {"gemm", "conv", "attention"}
