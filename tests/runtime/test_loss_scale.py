"""Training in float16 with a scaled loss: the steps, the skipped ones too, are those of
torch.amp.GradScaler in one process, and all ranks skip the same ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_plans import Planned, ask_for, planned
from torch import Tensor, nn

from planner.program.program import Communicate, Program, Update
from planner.report.runs import run_section
from planner.workload.ask import Ask
from planner.workload.ask import build as build_workload
from planner.workload.precision import precision_of
from runtime.executor import Executor
from runtime.groups import make_groups
from runtime.launcher import launch
from runtime.loss_scale import FIRST_SCALE, GROWTH_INTERVAL, LossScale
from runtime.parameters import build
from runtime.plain_trainer import PlainTrainer
from runtime.reference import reference_run
from runtime.verify import compare
from runtime.worker import join


def spiky(batch: int = 8) -> tuple[nn.Module, tuple[Tensor, ...], Any]:
    """A model whose last output is far from its target: at the first scales, the gradient of its
    row of the weights overflows in float16, and of no other row."""
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 4, bias=False))
    target = torch.randn(batch, 4)
    target[:, 3] = 60.0
    return model, (torch.randn(batch, 6), target), nn.functional.mse_loss


def ask_of(precision: str, num_devices: int = 1, clip_norm: float | None = None) -> Ask:
    return Ask(
        model=f"{Path(__file__).resolve()}:spiky",
        batch=8,
        seq=None,
        settings={},
        num_devices=num_devices,
        clip_norm=clip_norm,
        **precision_of(precision).fields(),
    )


def plan_of(precision: str, num_devices: int = 1, pin: str = "ddp", **more: Any) -> Planned:
    return planned(ask_of(precision, num_devices, **more), f"dp={num_devices}", (f"*={pin}",))


# ----------------------------------------------------------------------------------------- the scale


def test_the_scale_moves_as_torchs_does() -> None:
    """Down after an overflow, up after 2,000 good steps in a row."""
    tensor = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([tensor], lr=0.0)
    theirs, ours = torch.amp.GradScaler("cpu"), LossScale()
    assert ours.scale == theirs.get_scale() == FIRST_SCALE
    seen = set()
    for step in range(2 * GROWTH_INTERVAL + 500):
        gradient = math.inf if step in (0, 1, 2 * GROWTH_INTERVAL + 100) else 1.0
        theirs.scale(torch.ones(()))
        tensor.grad = torch.tensor([gradient])
        theirs.step(optimizer)
        theirs.update()
        assert ours.passes(torch.tensor(gradient**2)) == math.isfinite(gradient)
        assert ours.scale == theirs.get_scale()
        seen.add(ours.scale)
    assert seen == {FIRST_SCALE / 4, FIRST_SCALE / 2, FIRST_SCALE}


def test_a_gradient_that_is_no_number_is_an_overflow() -> None:
    scale = LossScale(4.0)
    assert not scale.passes(torch.tensor(math.nan))
    assert (scale.scale, scale.skipped, scale.num_skipped) == (2.0, True, 1)
    assert scale.passes(torch.tensor(0.0))
    assert (scale.scale, scale.skipped, scale.num_skipped) == (2.0, False, 1)


# ---------------------------------------------------------------------------------------- one process


def amp_steps(ask: Ask, num_steps: int) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Losses, scales after each step and weights of a loop as torch's documentation of AMP has it.
    Short parameters have master copies, which the optimizer and the scaler see."""
    workload = build(lambda: build_workload(ask), 0)
    module, (x, target) = workload.module, workload.batch
    held = list(module.parameters())
    masters = [p.detach().float().requires_grad_() for p in held]
    short = held[0].dtype == torch.float16
    trained = masters if short else held
    optimizer = torch.optim.Adam(trained, lr=workload.learning_rate)
    scaler = torch.amp.GradScaler("cpu")
    losses, scales = [], []
    for _ in range(num_steps):
        module.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16, enabled=not short):
            output = module(x)
        loss = nn.functional.mse_loss(output.float(), target.float())
        scaler.scale(loss).backward()
        for p, master in zip(held, masters, strict=True) if short else ():
            assert p.grad is not None
            master.grad = p.grad.float()
        scaler.unscale_(optimizer)
        if ask.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, ask.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            for p, master in zip(held, masters, strict=True) if short else ():
                p.copy_(master)
        losses.append(loss.item())
        scales.append(scaler.get_scale())
    names = [name for name, _ in module.named_parameters()]
    return losses, scales, dict(zip(names, (t.detach() for t in trained), strict=True))


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("precision", ["fp16-mixed", "fp16-master"])
def test_one_device_trains_as_torchs_amp(precision: str, clip_norm: float | None) -> None:
    plan = plan_of(precision, clip_norm=clip_norm)
    workload = build(lambda: build_workload(plan.ask), 0)
    begun = {n: p.detach().float().clone() for n, p in workload.module.named_parameters()}
    executor = Executor(plan.program, workload)
    losses, scales, held = [], [], []
    for _ in range(8):
        losses.append(executor.step(workload.batch))
        assert executor.loss_scale is not None
        scales.append(executor.loss_scale.scale)
        held.append({n: t.clone() for n, t in executor.parameter_shards().items()})
    their_losses, their_scales, weights = amp_steps(plan.ask, 8)
    assert scales == their_scales
    assert scales[0] < FIRST_SCALE and scales[-1] == scales[-2]  # overflows, then none
    assert losses == pytest.approx(their_losses, rel=1e-3)
    for name, weight in weights.items():
        moved = (weight - begun[name]).abs().max()
        assert (held[-1][name] - weight).abs().max() < 0.05 * moved, name
        assert torch.equal(held[0][name], begun[name])  # a skipped step changes nothing


def test_gradients_of_a_skipped_step_are_not_kept() -> None:
    plan = plan_of("fp16-mixed")
    workload = build(lambda: build_workload(plan.ask), 0)
    executor = Executor(plan.program, workload, keep_gradients=True)
    executor.step(workload.batch)
    assert executor.loss_scale is not None and executor.loss_scale.skipped
    assert executor.gradients == {}
    while executor.loss_scale.skipped:
        executor.step(workload.batch)
    assert all(bool(g.isfinite().all()) for g in executor.gradients.values())


def test_the_reference_is_torchs_grad_scaler_and_verification_sees_another_scale() -> None:
    plan = plan_of("fp16-mixed")

    def make() -> Any:
        return build_workload(plan.ask)

    trainer = PlainTrainer(make, plan.program, 0, None)
    assert isinstance(trainer.scaler, torch.amp.GradScaler) and trainer.scaler.is_enabled()
    workload = build(make, 0)
    executor = Executor(plan.program, workload, keep_gradients=True)
    losses, scales, gradients = [], [], {}
    for _ in range(5):
        losses.append(executor.step(workload.batch))
        assert executor.loss_scale is not None
        scales.append(executor.loss_scale.scale)
        gradients = gradients or dict(executor.gradients)
    for given in ((), scales):
        reference = reference_run(make, plan.program, seed=0, num_steps=5, scales=given)
        assert reference.scales == tuple(scales)
    parameters = executor.parameter_shards()
    found = compare(losses, gradients, parameters, reference, None, scales)
    assert found.verdict in ("equal", "equal to rounding"), found.worst
    other = [*scales[:-1], scales[-1] / 2]
    wrong = compare(losses, gradients, parameters, reference, None, other)
    assert wrong.verdict == "WRONG"
    assert (wrong.worst[0].what, wrong.worst[0].name) == ("loss scale", "of step 5")
    none = replace(reference, gradients={}, losses=(), scales=tuple(scales[:1]))
    assert compare([], {}, {}, none, None, scales[:1]).verdict == "no proof"


def test_a_run_may_overflow_where_one_process_does_not_by_the_order_of_sums_alone() -> None:
    """The reference skips what a run skipped, if a scale that is a few times as large explains
    it."""
    plan = plan_of("fp16-mixed", 2)

    def make() -> Any:
        return build_workload(plan.ask)

    def reference(*scales: float) -> tuple[float, ...]:
        given = tuple(FIRST_SCALE * scale for scale in scales)
        found = reference_run(make, plan.program, seed=0, num_steps=len(given), scales=given)
        return tuple(scale / FIRST_SCALE for scale in found.scales)

    own = reference_run(make, plan.program, seed=0, num_steps=4).scales
    assert [scale / FIRST_SCALE for scale in own] == [1 / 2, 1 / 4, 1 / 8, 1 / 8]
    for explained in (
        (1 / 2, 1 / 4, 1 / 8, 1 / 8),
        (1 / 2, 1 / 4, 1 / 4, 1 / 4),  # in parts, the third step does not overflow
        (1 / 2, 1 / 4, 1 / 8, 1 / 16),  # or the fourth one does
    ):
        assert reference(*explained) == explained
    assert reference(1.0)[0] == 1 / 2  # the first overflows in any parts
    skipped = [1 / 2**n for n in range(1, 8)]
    assert reference(*skipped)[-1] == skipped[-2]  # the last does in none


def test_the_program_reads_the_scale_and_sends_one_number() -> None:
    program = plan_of("fp16-master", 2, "zero3").program
    (scale,) = (state for state in program.inputs if state.kind == "scale")
    update = next(i for i in program.instructions if isinstance(i, Update))
    assert update.squares is not None
    sent = [i for i in program.instructions if isinstance(i, Communicate) and i.path == "ready"]
    assert [(i.kind, i.nbytes) for i in sent] == [("all_reduce", 4)]
    assert sent[0].time > 0
    readers = [i.id for i in program.instructions if scale.value in getattr(i, "operands", ())]
    assert any(name.startswith("backward") for name in readers)
    assert any(name.startswith("update.ready.scale") for name in readers)


# ------------------------------------------------------------------------------------------ two ranks


@dataclass(frozen=True)
class Case:
    ask: Ask
    programs: tuple[Program, ...]


def run_rank(cases: dict[str, Case], emit: Any) -> dict[str, tuple[Any, ...]]:
    """By name: this rank's losses, scales, and whether its own pieces of the first gradients were
    finite."""
    out = {}
    with join(2) as place:
        for name, case in cases.items():
            program = case.programs[place.rank]
            workload = build(lambda case=case: build_workload(case.ask), 0)
            groups = make_groups(program, place.rank)
            executor = Executor(program, workload, rank=place.rank, groups=groups)
            scale = executor.loss_scale
            assert scale is not None
            losses, scales = [], []
            for _ in range(6):
                losses.append(executor.step(workload.batch))
                scales.append(scale.scale)
            out[name] = (losses, scales, scale.num_skipped)
    return out


@pytest.fixture(scope="module")
def two() -> tuple[dict[str, Any], dict[str, Any]]:
    cases = {}
    for precision in ("fp16-mixed", "fp16-master"):
        for pin in ("ddp", "zero1", "zero3"):
            plan = plan_of(precision, 2, pin)
            cases[f"{precision} {pin}"] = Case(plan.ask, plan.programs)
    first, second = launch("test_loss_scale:run_rank", 2, cases)
    return first, second


def test_all_ranks_skip_the_same_steps_as_one_process(
    two: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    """Under ZeRO only the second rank's pieces overflow: the first learns it from the sum."""
    for name, (losses, scales, num_skipped) in two[0].items():
        assert two[1][name] == (losses, scales, num_skipped)
        theirs, their_scales, _ = amp_steps(ask_of(name.partition(" ")[0]), 6)
        assert scales == their_scales, name
        assert losses == pytest.approx(theirs, rel=1e-3)
        assert 0 < num_skipped < 6


def test_a_run_reports_its_scale() -> None:
    result = {
        "num_ranks": 1,
        "backend": "gloo",
        "losses": [2.0, 1.0],
        "step_times_s": [1.0, 1.0],
        "peak_memory_bytes": 8,
        "verify": None,
        "loss_scales": [32768.0, 32768.0],
        "num_skipped": 1,
    }

    class Stub:
        mesh = "dp=1"
        ask = ask_for("mlp")

    (table,) = run_section(Stub(), result, 1.0).body  # type: ignore[arg-type]
    assert ("loss scale", "32768; 1 step skipped, whose gradients overflowed") in table.rows  # type: ignore[union-attr]
