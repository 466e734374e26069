"""A person's model with layers under `torch.utils.checkpoint`: a plan runs them again in backward, and
holds no more than plain torch does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_plans import OWN, Planned, planned

from planner.predict.predict import memory_by_category
from planner.program.program import runs_again
from planner.strategy.mode_pins import modes_under
from planner.strategy.pins import recompute_pins
from planner.torch_private.allocator import allocations
from planner.workload.ask import Ask, build
from planner.workload.workload import Workload
from runtime.executor import Executor
from runtime.parameters import build as built

#: Layers of some 2 MB of activations.
SIZES = {"width": "64", "heads": "4", "layers": "4"}


def ask_of(name: str) -> Ask:
    return Ask(
        model=f"{Path(OWN[name])}:{name}",
        batch=64,
        seq=None,
        settings=SIZES,
        dtype="float32",
        num_devices=1,
    )


def plan_of(name: str, *pins: str) -> Planned:
    return planned(ask_of(name), "a=1", pins)


def held_by_torch(workload: Workload) -> int:
    """The most bytes that plain torch allocates in forward and backward: activations and
    gradients."""
    torch.manual_seed(0)
    inputs, named, target = workload.arguments(workload.batch)
    with allocations(torch.device("cpu")) as found:
        loss, _ = workload.losses(workload.module(*inputs, **named), target)
        loss.backward()
    return max(nbytes for _, nbytes in found.samples) - found.before


def held_by_plan(plan: Planned) -> tuple[int, int]:
    """The peak bytes of a plan's step, measured and predicted, without what it begins with."""
    workload = built(lambda: build(plan.ask), 0)
    executor = Executor(plan.program, workload)
    executor.step(workload.batch)
    begins = executor.recorded_step(workload.batch).memory[0].nbytes
    predicted = sum(memory_by_category(plan.program).values())
    return executor.peak_memory_bytes - begins, predicted - sum(plan.program.initial_bytes.values())


def test_a_plan_holds_no_more_than_torch_does_with_checkpoints() -> None:
    held = {name: held_by_plan(plan_of(name)) for name in ("checkpointed", "unfused")}
    plain = {name: held_by_torch(built(lambda n=name: build(ask_of(n)), 0)) for name in held}  # type: ignore[misc]
    print(held, plain)
    for measured, predicted in held.values():
        assert measured == pytest.approx(predicted, rel=0.03)
    assert held["checkpointed"][0] < 0.5 * held["unfused"][0]
    assert held["checkpointed"][0] <= plain["checkpointed"]
    assert plain["checkpointed"] < 0.6 * plain["unfused"]


def test_a_checkpoint_is_a_pin_that_other_pins_overrule() -> None:
    plan = plan_of("checkpointed")
    full = modes_under(plan.model, recompute_pins("full"))
    assert modes_under(plan.model, ()) == full
    assert modes_under(plan.model, recompute_pins("none")) == {}
    program = plan_of("checkpointed", "h.*.mlp=keep").program
    again = [i.id for i in program.instructions if runs_again(i.id) and i.kind != "view"]
    assert not any(".mlp." in name for name in again)
    assert any(".qkv." in name for name in again)
