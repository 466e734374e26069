"""A step in microbatches on one process: loss, gradients and parameters of the whole batch."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from plain_graph import torch_step
from small_plans import Planned, ask_for, planned
from torch import Tensor, nn

from planner.predict.predict import memory_by_category
from planner.program.program import Program
from planner.workload.ask import Ask, build
from runtime.executor import Executor
from runtime.parameters import build as built
from runtime.reference import reference_run
from runtime.verify import compare

BATCH = 8


class Sharing(nn.Module):
    """Two parameters with one gradient, one whose gradient is a broadcast number, and one whose
    gradient is a part of a larger tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.broadcast, self.part = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(6))
        self.rest = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat((self.part, self.rest))
        out: Tensor = (x * (self.a + self.b)).sum(1) + x.mean(1) * self.broadcast.sum()
        return out + (x @ joined[:6]) * joined[6:].sum()


def sharing(batch: int = BATCH) -> tuple[nn.Module, tuple[Tensor, ...], Any]:
    """The model as the planner names it: `FILE:sharing`."""
    return Sharing(), (torch.randn(batch, 6), torch.randn(batch)), nn.functional.mse_loss


def batch_normed(batch: int = BATCH) -> tuple[nn.Module, tuple[Tensor, ...], Any]:
    """A model with statistics over samples, and a buffer that each microbatch changes."""
    module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    return module, (torch.randn(batch, 6), torch.randn(batch, 3)), nn.functional.mse_loss


def ask(name: str, **more: Any) -> Ask:
    if name not in ("sharing", "batch_normed"):
        return ask_for(name, 1, batch=BATCH, **more)
    return Ask(
        model=f"{__file__}:{name}", batch=BATCH, seq=None, settings={}, dtype="float64",
        num_devices=1, **more,
    )  # fmt: skip


def plan(name: str, microbatches: int, **more: Any) -> tuple[Ask, Planned]:
    asked = ask(name, microbatches=microbatches, **more)
    return asked, planned(asked, "a=1")


@pytest.mark.parametrize("microbatches", [2, 4])
@pytest.mark.parametrize("name", ["gpt", "lstm", "dropped", "sharing"])
def test_two_steps_are_those_of_the_whole_batch(name: str, microbatches: int) -> None:
    """With unlike numbers of ignored targets in the microbatches, tied weights, dropout."""
    more = {"clip_norm": 0.1} if name == "gpt" else {}
    asked, found = plan(name, microbatches, **more)
    workload = built(partial(build, asked), 0)
    began = built(partial(build, asked), 0)
    if name == "gpt":
        for one in (workload, began):
            one.batch[-1][0, :5] = -100
    executor = Executor(found.program, workload, keep_gradients=True)
    losses = [executor.step(workload.batch)]
    gradients = dict(executor.gradients)
    losses.append(executor.step(workload.batch))
    reference = reference_run(
        partial(build, asked), found.program, seed=0, num_steps=2, began=began
    )
    apart = compare(losses, gradients, executor.parameter_shards(), reference)
    assert max(apart.loss_error, apart.gradient_error, apart.parameter_error) <= 1e-12, apart


def test_a_sum_has_memory_of_its_own() -> None:
    """The first term becomes the sum only if nothing else lies there."""
    _, found = plan("sharing", 2)
    sums = [one for one in found.program.bodies["FIRST"] if ".accumulate#" in one.id]
    copied = [one for one in sums if getattr(one, "op", "") == "aten.clone.default"]
    assert 3 <= len(copied) < len(sums)  # of a and b one, the broadcast one, a part


def test_buffers_that_every_microbatch_changes_go_from_one_to_the_next() -> None:
    """Batch norm over each microbatch, as gradient accumulation in plain torch has it."""
    asked, found = plan("batch_normed", 4, per_microbatch=("*",))
    workload, theirs = (built(partial(build, asked), 0) for _ in range(2))
    executor = Executor(found.program, workload, keep_gradients=True)
    loss = executor.step(workload.batch)
    expected = torch_step(theirs, 4)
    assert loss == pytest.approx(float(expected.losses[""]), rel=1e-12)
    for name, gradient in executor.gradients.items():
        torch.testing.assert_close(gradient, expected.gradients[name], rtol=1e-10, atol=1e-14)
    names = {state.value: state.name for state in found.program.inputs}
    stored = {names[value]: executor.buffer(value) for value, _ in found.program.stores}
    assert stored.keys() == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    for name, buffer in stored.items():
        torch.testing.assert_close(buffer, dict(theirs.module.named_buffers())[name])
    assert int(stored["1.num_batches_tracked"]) == 4


@pytest.fixture(scope="module")
def recorded() -> tuple[Program, Executor, Any]:
    asked, found = plan("gpt", 4)
    workload = built(partial(build, asked), 0)
    executor = Executor(found.program, workload)
    executor.step(workload.batch)  # makes the optimizer's state
    return found.program, executor, executor.recorded_step(workload.batch)


def test_a_recorded_step_has_an_event_of_every_microbatch(
    recorded: tuple[Program, Executor, Any],
) -> None:
    program, _, timeline = recorded
    assert sorted((event.id, event.microbatch) for event in timeline.events) == sorted(
        (one.id, action.microbatch)
        for action in program.actions
        for one in program.bodies[action.body]
    )


def test_memory_is_as_predicted(recorded: tuple[Program, Executor, Any]) -> None:
    program, executor, _ = recorded
    predicted = sum(memory_by_category(program).values())
    assert 0.99 <= predicted / executor.peak_memory_bytes <= 1.03
