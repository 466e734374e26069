"""What a program will do: against the objective where nothing overlaps, and memory by category."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_plans import Planned, ask_for, mesh_of, planned

import planner.lowering.assemble
import planner.lowering.gradient_buckets
import planner.lowering.operands
from cost_models.cluster import load_cluster
from cost_models.machine import Cluster
from cost_models.memory import optimizer_state_bytes
from planner.graph.layout import Mesh
from planner.predict.predict import (
    CATEGORIES,
    instruction_of,
    memory_by_category,
    memory_over_time,
    peak_position,
    predict,
    simulate_program,
)
from planner.program.actions import STEP
from planner.program.program import Communicate, Compute, Instruction, Program, Ref
from planner.strategy.choices import recost


def serial(num_devices: int) -> Cluster:
    """GPUs that do one thing at a time and are launched for next to nothing."""
    cluster = load_cluster("dgx-h100", num_devices=num_devices)
    return replace(
        cluster,
        device=replace(cluster.device, overlap=0.0, launch_overhead=1e-15, step_overhead=0.0),
    )


PLANS = [
    ("mlp", "dp=4", ("*=ddp",)),
    ("gpt", "dp=4", ("*=ddp",)),
    ("gpt", "tp=4", ("*=tensor",)),
    ("lstm", "dp=4", ("*=ddp",)),
    ("cnn", "tp=2", ("*=tensor",)),
    ("mlp", "a=1", ()),
    ("gpt", "dp=4", ("*=zero3",)),
    ("mlp", "dp=4", ("*=zero1",)),
]


@pytest.mark.parametrize(("model", "mesh", "pins"), PLANS)
def test_the_serial_step_is_the_objective(
    monkeypatch: pytest.MonkeyPatch, model: str, mesh: str, pins: tuple[str, ...]
) -> None:
    """With no overlap and no launches the simulated step is the sum of all seconds. What is not
    sent together with other messages (gradients, parameters) costs what the objective says, but
    for the tie-break: a thousandth of the ops' memory time."""
    plainly(monkeypatch)
    found = serially_planned(model, mesh, pins)
    step = simulate_program(found.program, found.cluster).step_time
    assert step == pytest.approx(sum(map(seconds, found.program.instructions)), rel=1e-9)
    gathered = {s.value for s in found.program.parameters}
    together = [
        i
        for i in found.program.instructions
        if isinstance(i, Communicate) and (i.phase == "update" or gathered & set(i.sources))
    ]
    shown = recost(found.model, found.table.costing, found.choices, overlapped=1.0)
    alone = step - sum(map(seconds, together))
    assert 0.998 * shown <= alone <= (shown + copied_to_free(found)) * (1 + 1e-9)


@pytest.mark.parametrize("model", ["mlp", "gpt", "cnn"])
def test_one_bucket_of_gradients_costs_its_shares(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """Where all gradients go in one bucket, their shares of it add up to it, and the whole step
    is the objective."""
    plainly(monkeypatch)
    found = serially_planned(model, "dp=4", ("*=ddp",))
    objective = recost(found.model, found.table.costing, found.choices)
    assert objective == pytest.approx(found.solution.objective, rel=1e-12)
    assert (
        0.998 * objective
        <= simulate_program(found.program, found.cluster).step_time
        <= objective * (1 + 1e-9)
    )


@pytest.mark.parametrize(("model", "mesh", "pins"), PLANS)
def test_what_lowering_saves_makes_no_step_longer(
    model: str, mesh: str, pins: tuple[str, ...]
) -> None:
    """Joined biases, small values that backward keeps from forward, and a loss that goes along
    with gradients are not in the objective: they can only save."""
    saved = serially_planned(model, mesh, pins)
    with pytest.MonkeyPatch.context() as patch:
        plainly(patch)
        plain = serially_planned(model, mesh, pins)
    steps = [simulate_program(p.program, p.cluster).step_time for p in (saved, plain)]
    assert 0.5 * steps[1] <= steps[0] <= steps[1]


def plainly(patch: pytest.MonkeyPatch) -> None:
    """Lowers op by op, value by value, as the objective prices them."""
    patch.setattr(
        planner.lowering.assemble, "join_biases", lambda instructions, shapes: instructions
    )
    patch.setattr(planner.lowering.operands, "SMALL", 0)
    patch.setattr(planner.lowering.gradient_buckets, "_riders", lambda instructions: set())


def serially_planned(model: str, mesh: str, pins: tuple[str, ...]) -> Planned:
    return planned(
        ask_for(model, dtype="float32"), mesh, pins, cluster=serial(mesh_of(mesh).num_devices)
    )


def seconds(instruction: Instruction) -> float:
    """Of its kernel or collective, and of what is copied for it."""
    copied = (
        instruction.packing + instruction.unpacking if isinstance(instruction, Communicate) else 0.0
    )
    return instruction.time + copied


def copied_to_free(found: Planned) -> float:
    """What is copied only because of who reads the value elsewhere: slices of what is freed
    there, sums of what is read later."""
    kinds = ("slice", "all_reduce")
    copies = [
        i
        for i in found.program.instructions
        if isinstance(i, Communicate) and i.kind in kinds and i.phase != "update"
    ]
    return sum(i.time if i.kind == "slice" else i.packing for i in copies)


@pytest.mark.parametrize(("model", "mesh", "pins"), PLANS)
def test_parts_and_categories_add_up(model: str, mesh: str, pins: tuple[str, ...]) -> None:
    found = planned(ask_for(model), mesh, pins)
    prediction = predict(found.program, found.cluster)
    parts = (
        prediction.compute_time_s + prediction.exposed_communication_time_s + prediction.idle_time_s
    )
    assert parts == pytest.approx(prediction.step_time_s, rel=1e-9)
    assert (
        min(
            prediction.compute_time_s,
            prediction.exposed_communication_time_s,
            prediction.idle_time_s,
        )
        >= 0.0
    )
    assert tuple(prediction.memory_bytes) == CATEGORIES
    assert min(prediction.memory_bytes.values()) >= 0
    assert prediction.total_memory_bytes == sum(prediction.memory_bytes.values())
    ids = {i.id for i in found.program.instructions}
    assert peak_position(found.program) in ids | {"start"}
    timeline = simulate_program(found.program, found.cluster)
    assert {instruction_of(e.id) for e in timeline.events} == ids


def test_overlap_hides_communication() -> None:
    """Of gradients in several buckets, all but the last can hide behind backward."""
    ask = ask_for("gpt", dtype="float32", width=64, batch=64)
    found = planned(ask, "dp=4", ("*=ddp",), cluster=serial(4), bucket=30_000)
    together = replace(serial(4), device=replace(serial(4).device, overlap=1.0))
    hidden, alone = predict(found.program, together), predict(found.program, serial(4))
    assert hidden.step_time_s < alone.step_time_s
    assert hidden.exposed_communication_time_s <= alone.exposed_communication_time_s


def test_compute_waits_for_what_the_executor_blocks_on() -> None:
    """Even on a device that overlaps everything, a collective that is not asynchronous is
    exposed whole."""
    found = planned(ask_for("gpt", width=64, batch=64), "tp=4", ("*=tensor",))
    cluster = replace(found.cluster, device=replace(found.cluster.device, overlap=1.0))
    blocking = [
        i
        for i in found.program.instructions
        if isinstance(i, Communicate) and i.kind != "slice" and not i.asynchronous
    ]
    assert blocking
    timeline = simulate_program(found.program, cluster)
    events = {event.id: event for event in timeline.events}
    for instruction in blocking:
        event = events[instruction.id]
        beside = [
            e
            for e in timeline.events
            if e.stream == "compute" and e.start < event.end and e.end > event.start
        ]
        assert not [e.id for e in beside if e.duration > 0]
    exposed = predict(found.program, cluster).exposed_communication_time_s
    assert exposed >= sum(i.time for i in blocking) * (1 - 1e-9)


_AXES = {"all_reduce": (1,), "all_gather": (0,)}  # of dp=2,tp=8 on two nodes: tp inside, dp between


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Kernels and collectives over two axes, some asynchronous, each reading some of what stands
    before it."""
    instructions: list[Compute | Communicate] = []
    for i in range(draw(st.integers(1, 16))):
        read = tuple(sorted(draw(st.sets(st.integers(0, i - 1), max_size=2)))) if i else ()
        kind, time = (
            draw(st.sampled_from(["gemm", "gemm", "all_reduce", "all_gather"])) if read else "gemm",
            draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])),
        )
        if kind == "gemm":
            instructions.append(
                Compute(
                    id=f"i{i}",
                    op="aten.mm.default",
                    args=tuple(map(Ref, read)),
                    results=(i,),
                    shapes=((),),
                    dtypes=("float32",),
                    kind=kind,
                    phase="forward",
                    time=time,
                )
            )
        else:
            instructions.append(
                Communicate(
                    id=f"i{i}",
                    kind=kind,
                    axes=_AXES[kind],
                    sources=read[:1],
                    results=(i,),
                    expanded=((1,),),
                    shapes=((1,),),
                    dtypes=("float32",),
                    gather=0 if kind == "all_gather" else None,
                    phase="forward",
                    time=time,
                    asynchronous=draw(st.booleans()),
                )
            )
    return Program(
        mesh=Mesh(("dp", "tp"), (2, 8)),
        bodies={STEP: tuple(instructions)},
        parameters=(),
        inputs=(),
        loss=0,
        value_bytes=dict.fromkeys(range(len(instructions)), 0),
        initial_bytes={},
    )


@settings(max_examples=100, deadline=None)
@given(programs(), st.sampled_from([0.0, 0.3, 0.81, 1.0]))
def test_no_step_is_shorter_than_its_compute_and_what_it_waits_for(
    program: Program, overlap: float
) -> None:
    """T >= C + M_blocking + (1 - overlap) M_asynchronous for the collectives of every class of
    links."""
    cluster = load_cluster("dgx-h100", num_devices=16)
    cluster = replace(cluster, device=replace(cluster.device, overlap=overlap, launch_overhead=0.0))
    step = simulate_program(program, cluster).step_time
    compute = sum(i.time for i in program.instructions if isinstance(i, Compute))
    for axes in _AXES.values():
        sent = [i for i in program.instructions if isinstance(i, Communicate) and i.axes == axes]
        waited = sum(i.time for i in sent if not i.asynchronous)
        assert (
            step
            >= compute + waited + (1 - overlap) * sum(i.time for i in sent if i.asynchronous) - 1e-9
        )
    everything = sum(
        i.time for i in program.instructions if isinstance(i, Compute) or not i.asynchronous
    )
    assert step >= everything - 1e-9, (
        "what the executor waits for follows compute, whatever links it crosses"
    )


@pytest.mark.parametrize(("model", "mesh", "pins"), PLANS)
def test_memory_over_time_meets_memory_by_category(
    model: str, mesh: str, pins: tuple[str, ...]
) -> None:
    """It starts with what is held before, ends with that and the loss, and peaks where the table
    says."""
    found = planned(ask_for(model), mesh, pins)
    times, held = memory_over_time(found.program, simulate_program(found.program, found.cluster))
    assert times[0] == 0.0 and times == sorted(times)
    assert {len(values) for values in held.values()} == {len(times)}
    assert all(value >= 0 for values in held.values() for value in values)
    total = [sum(values) for values in zip(*held.values(), strict=True)]
    before = sum(found.program.initial_bytes.values())
    assert before <= total[-1] <= before + 64
    walked = sum(memory_by_category(found.program).values())
    assert max(total) == walked


def test_one_device_holds_what_a_person_would_count() -> None:
    """mlp, float64, one device: parameters, two moments and a step count each, the batch, and a
    gradient of every parameter."""
    found = planned(ask_for("mlp"), "a=1")
    memory = memory_by_category(found.program)
    numels = [found.model.graph.values[p.value].numel for p in found.model.graph.parameters]
    assert memory["parameters"] == 8 * sum(numels)
    assert memory["optimizer"] == sum(
        optimizer_state_bytes("adam", numel=n, dtype="float64") for n in numels
    )
    assert memory["inputs"] == 8 * (8 * 16 + 8 * 8)
    assert memory["gathered"] == 0
    assert 0 < memory["gradients"] <= 8 * sum(numels)


def test_zero_divides_what_it_says() -> None:
    """On 4 ranks ZeRO-1 and ZeRO-3 hold a quarter of the optimizer state and of the parameters
    between steps; in a step ZeRO-1 holds each parameter whole from its first reading to its
    last."""
    ddp, zero1, zero3 = (
        planned(ask_for("mlp"), "dp=4", (f"*={kind}",)).program.initial_bytes
        for kind in ("ddp", "zero1", "zero3")
    )
    assert ddp["parameters"] == 4 * zero1["parameters"] == 4 * zero3["parameters"]
    assert math.isclose(zero3["optimizer"], ddp["optimizer"] / 4, rel_tol=0.01)
    assert math.isclose(zero1["optimizer"], ddp["optimizer"] / 4, rel_tol=0.01)
