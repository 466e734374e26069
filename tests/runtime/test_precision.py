"""The precisions that people train in: the formats of a plan, its memory, and what it trains, against
plain loops in torch and the allocator."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_plans import Planned, ask_for, planned

from cost_models.errors import BadValue, UnknownName
from planner.predict.predict import memory_by_category
from planner.program.program import Communicate, Compute
from planner.workload.ask import build as build_workload
from planner.workload.precision import PLAIN, Precision, format_words, precision_of
from planner.workload.workload import Workload
from runtime.executor import Executor
from runtime.parameters import build

BYTES = {"float32": 4, "bfloat16": 2}


def plan_in(
    precision: str,
    model: str = "gpt",
    *,
    reduce: str = "",
    num_devices: int = 1,
    pins: tuple[str, ...] = (),
    **more: Any,
) -> Planned:
    ask = ask_for(model, num_devices, **precision_of(precision, reduce).fields(), **more)
    return planned(ask, f"dp={num_devices}", pins)


def executor_of(plan: Planned) -> tuple[Executor, Workload]:
    workload = build(lambda: build_workload(plan.ask), 0)
    # The executor takes the workload's tensors as they are: tests train a copy of the module.
    return Executor(plan.program, workload, keep_gradients=True), copy.deepcopy(workload)


def messages(plan: Planned, phase: str) -> list[Communicate]:
    return [i for i in plan.program.instructions if isinstance(i, Communicate) and i.phase == phase]


# ----------------------------------------------------------------------------------------- formats


def test_names_of_precisions() -> None:
    assert precision_of("bf16-mixed") == Precision(dtype="float32", compute="bfloat16")
    assert precision_of("float64") == Precision(dtype="float64")
    master = precision_of("bf16-master")
    assert (master.dtype, master.formats.master, master.formats.reduce) == (
        "bfloat16",
        "float32",
        "float32",
    )
    assert precision_of("fp32", "fp32").formats == PLAIN
    assert precision_of("bf16", "bf16").formats == PLAIN
    assert precision_of("bf16", "fp32").formats == replace(PLAIN, reduce="float32")


def test_formats_to_add_up_in() -> None:
    assert precision_of("fp32").formats.accumulated("float32") == "float32"
    assert precision_of("bf16").formats.accumulated("bfloat16") == "bfloat16"
    assert precision_of("bf16-master", "bf16").formats.accumulated("bfloat16") == "float32"
    assert precision_of("fp16-mixed", "fp16").formats.accumulated("float32") == "float32"
    assert precision_of("bf16-master", "", "fp32").formats.accumulate == ""
    assert precision_of("bf16-master", "", "bf16").formats.accumulated("bfloat16") == "bfloat16"
    with pytest.raises(BadValue, match="--accumulate-gradients bf16 with --precision fp64"):
        precision_of("fp64", "", "bf16")


@pytest.mark.parametrize(
    ("precision", "reduce", "message"),
    [
        ("bf61", "", "unknown precision 'bf61'"),
        ("bf16", "fp8", "unknown format to reduce gradients 'fp8'"),
        ("bf16-mixed", "fp16", "--reduce-gradients fp16 with --precision bf16-mixed"),
        ("fp16", "", "float16 alone lose small updates and overflow; give fp16-mixed or"),
        ("float16", "", "float16 alone lose small updates"),
        ("fp64", "bf16", "--reduce-gradients bf16 with --precision fp64"),
    ],
)
def test_formats_that_do_not_exist(precision: str, reduce: str, message: str) -> None:
    with pytest.raises((UnknownName, BadValue), match=message):
        precision_of(precision, reduce)


@pytest.mark.parametrize(
    ("precision", "reduce", "words"),
    [
        ("fp32", "", "float32"),
        ("bf16", "", "bfloat16"),
        ("bf16-mixed", "", "float32, products in bfloat16 (bf16-mixed)"),
        ("bf16-master", "", "bfloat16 with a float32 master copy (bf16-master)"),
        ("fp32", "bf16", "float32, gradients reduced in bfloat16"),
        (
            "bf16-master",
            "bf16",
            "bfloat16 with a float32 master copy (bf16-master), gradients reduced in bfloat16",
        ),
    ],
)
def test_formats_in_words(precision: str, reduce: str, words: str) -> None:
    found = precision_of(precision, reduce)
    assert format_words(found.dtype, found.compute or found.dtype, found.formats) == words


# ------------------------------------------------------------------------------------ what is sent


def test_gathers_of_short_parameters_are_half_those_of_mixed_precision() -> None:
    """Under ZeRO-1, where bf16-mixed gathers float32; gradients are reduced in float32 in both."""
    short, mixed = (
        plan_in(precision, num_devices=2, pins=("*=zero1",))
        for precision in ("bf16-master", "bf16-mixed")
    )
    gathered = [
        sum(i.nbytes for i in messages(p, "forward") if i.kind == "all_gather")
        for p in (short, mixed)
    ]
    assert 0 < 2 * gathered[0] == gathered[1]
    for plan in (short, mixed):
        assert {d for i in messages(plan, "update") for d in i.dtypes} == {"float32"}


@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed", "bf16-master"])
def test_gradients_reduced_in_bfloat16_are_half_the_bytes(precision: str) -> None:
    sent = {}
    for reduce in ("fp32", "bf16"):
        plan = plan_in(precision, reduce=reduce, num_devices=2, pins=("*=ddp",))
        found = messages(plan, "update")
        assert {d for i in found for d in i.dtypes} == {
            {"fp32": "float32", "bf16": "bfloat16"}[reduce]
        }
        # The loss may travel with them.
        sent[reduce] = sum(i.nbytes for i in found) - 4 * sum(
            x == () for i in found for x in i.expanded
        )
    assert sent["fp32"] == 2 * sent["bf16"] == 4 * plan.model.graph.num_parameters


def test_the_error_of_gradients_reduced_in_bfloat16() -> None:
    """At most half a unit in the last of 8 bits per element, on one device; float32 has none of
    it."""
    plan = plan_in("fp32", reduce="bf16")
    executor, workload = executor_of(plan)
    executor.step(workload.batch)
    plain = plan_in("fp32")
    other, _ = executor_of(plain)
    other.step(workload.batch)
    worst = 0.0
    for name, gradient in executor.gradients.items():
        assert gradient.dtype == torch.float32
        exact = other.gradients[name]
        error = (gradient - exact).abs()
        assert bool((error <= 2**-8 * exact.abs() + 1e-6 * exact.abs().max()).all()), name
        worst = max(worst, float(error.max() / exact.abs().max()))
    assert worst > 2**-12


# ------------------------------------------------------------------------------------ what it trains


def plain_steps_with_masters(workload: Workload, num_steps: int, clip: float | None) -> Any:
    """The losses and master copies of a loop as people write it: parameters in bfloat16, Adam over
    float32 copies of them."""
    module = workload.module
    names = [name for name, _ in module.named_parameters()]
    short = list(module.parameters())
    masters = [p.detach().float().clone().requires_grad_() for p in short]
    optimizer = torch.optim.Adam(masters, lr=workload.learning_rate)
    losses = []
    for _ in range(num_steps):
        for p in short:
            p.grad = None
        inputs, target = workload.batch[:-1], workload.batch[-1]
        logits = module(*inputs)
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), target.flatten())
        loss.backward()
        for p, master in zip(short, masters, strict=True):
            assert p.grad is not None and p.grad.dtype == torch.bfloat16
            master.grad = p.grad.float()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(masters, clip)
        optimizer.step()
        with torch.no_grad():
            for p, master in zip(short, masters, strict=True):
                p.copy_(master)
        losses.append(loss.item())
    return losses, dict(zip(names, (m.detach() for m in masters), strict=True))


@pytest.mark.parametrize("clip", [None, 0.1])
def test_short_parameters_with_master_copies_train_as_a_plain_loop(clip: float | None) -> None:
    plan = plan_in("bf16-master", clip_norm=clip)
    executor, workload = executor_of(plan)
    losses = [executor.step(workload.batch) for _ in range(4)]
    theirs, masters = plain_steps_with_masters(workload, 4, clip)
    assert losses == pytest.approx(theirs, rel=1e-3)
    before = dict(build(lambda: build_workload(plan.ask), 0).module.named_parameters())
    close = []
    for name, master in executor.parameter_shards().items():
        assert master.dtype == torch.float32
        moved = (masters[name] - before[name].detach().float()).abs().max()
        close.append(((master - masters[name]).abs() <= 0.1 * moved).flatten())
        held = executor._state[{s.name: s.shard for s in plan.program.parameters}[name]]
        assert torch.equal(held, master.to(torch.bfloat16))
    # Noise turns Adam's steps where a gradient is nearly 0: most elements must agree.
    assert torch.cat(close).double().mean() > 0.97


def test_master_copies_keep_what_bfloat16_rounds_away() -> None:
    """A step of 1e-5 is lost on bfloat16 weights of about 0.02, not on their master copies."""
    found = {}
    for precision in ("bf16", "bf16-master"):
        executor, workload = executor_of(plan_in(precision))
        executor._updater.optimizer.param_groups[0]["lr"] = 1e-5
        before = {n: t.clone().float() for n, t in executor.parameter_shards().items()}
        for _ in range(3):
            executor.step(workload.batch)
        moved = {n: (t.float() - before[n]) != 0 for n, t in executor.parameter_shards().items()}
        found[precision] = float(moved["h.0.mlp.fc.weight"].double().mean())
    assert found["bf16-master"] > 0.95
    assert found["bf16"] < 0.5 * found["bf16-master"]


# ------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize(
    ("pin", "num_devices", "share"), [("ddp", 1, 1.0), ("zero1", 2, 0.5), ("zero3", 2, 0.5)]
)
def test_bytes_held_between_steps(pin: str, num_devices: int, share: float) -> None:
    """2 for the parameter, 4 for its master copy, 8 for Adam's state, each in the same pieces."""
    plan = plan_in("bf16-master", "mlp", num_devices=num_devices, pins=(f"*={pin}",))
    held, number = plan.program.initial_bytes, plan.model.graph.num_parameters
    assert held["parameters"] == 2 * number * share
    counters = 4 * len(plan.model.graph.parameters)
    assert held["optimizer"] == (4 + 8) * number * share + counters


@pytest.mark.parametrize(
    ("precision", "reduce"), [("bf16-master", ""), ("bf16-master", "bf16"), ("bf16-mixed", "bf16")]
)
def test_memory_is_the_allocators(precision: str, reduce: str) -> None:
    sizes = {"width": 128, "heads": 4, "vocab": 512, "layers": 2, "positions": 32, "seq": 32}
    plan = plan_in(precision, reduce=reduce, clip_norm=1.0, **sizes)
    executor, workload = executor_of(plan)
    executor.keep_gradients = False
    executor.step(workload.batch)
    executor.recorded_step(workload.batch)
    predicted = sum(memory_by_category(plan.program).values())
    assert 0.97 <= executor.peak_memory_bytes / predicted <= 1.01


def test_gradients_are_cast_right_after_they_are_made() -> None:
    """So that their reduction starts there, beside the rest of backward."""
    plan = plan_in("bf16-master", num_devices=2, pins=("*=ddp",))
    names = [
        (i.op, i.dtypes)
        for i in plan.program.instructions
        if isinstance(i, Compute) and i.phase == "backward"
    ]
    casts = [
        n
        for n, (op, dtypes) in enumerate(names)
        if op == "aten._to_copy.default" and dtypes == ("float32",)
    ]
    assert casts[0] < len(names) / 3
    assert len(casts) >= len(plan.model.graph.parameters)
