"""Training by a plan on the user's own data: global batches in, losses and whole parameters out.

    plan file, batches -> ranks of this machine, each with its part of every batch -> Trained

The batches and the result pass between this process and the ranks as files in a temporary folder.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cost_models.errors import BadValue
from planner.models.keras_model import batch_of, is_keras
from planner.plans.plan_file import read_plan
from planner.plans.replay import workload_of
from planner.workload.batches import flatten
from planner.workload.workload import Workload, unused
from runtime.alike import begin
from runtime.launcher import Emit, launch
from runtime.loss_scale import scale_event
from runtime.parameters import full_tensors
from runtime.runner import lowered, make_runner, whole_buffers, whole_parameters
from runtime.worker import join

__all__ = ["TrainRequest", "Trained", "train_plan", "train_rank"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The loss and rank 0's seconds of every step; and, after the last step, by name, on the CPU,
    the whole parameters and the buffers that the step changes. Parameters that take no part in the
    loss are included, unchanged. If the loss is a sum, `reported` has each term by name, per step.
    """

    losses: tuple[float, ...]
    step_times_s: tuple[float, ...]
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    reported: tuple[Mapping[str, float], ...] = ()

    @property
    def state(self) -> dict[str, Tensor]:
        """All trained tensors, for `module.load_state_dict(trained.state, strict=False)`."""
        return {**self.parameters, **self.buffers}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """A rank's instructions. Rank 0 writes its `Trained`, as a dict, to `result`."""

    plan: str
    batches: str
    result: str
    seed: int = 0
    learning_rate: float | None = None
    device: str = ""


def train_plan(
    plan: str | Path,
    batches: Iterable[Any],
    *,
    seed: int = 0,
    learning_rate: float | None = None,
    device: str = "",
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> Trained:
    """Trains by the plan in a file, one step per batch, on as many processes as the plan has
    devices; returns the result.

    Each of `batches` is global, (inputs..., target) or nested like the plan's example, in the same
    shapes; every rank takes its own part. The model starts from `seed` and uses the workload's
    optimizer, at its learning rate unless one is given. `device` is "cpu" or "cuda", by default
    CUDA if there is any. `on_event` is called with `{"step", "loss", "time_s", "losses"}` after
    each step, in a thread; "losses" has the terms of a loss that is a sum, by name. If the loss is
    scaled, "loss_scale" is its scale after the step, and "skipped" whether that made no update.

    Raises BadValue if there is no batch, or one of other shapes, BadPlan for a bad file, RunFailed
    if a rank fails for another reason.
    """
    num_ranks = read_plan(plan).mesh.num_devices
    model = read_plan(plan).ask.model
    given_batches = map(batch_of, batches) if is_keras(model) else batches
    whole = [(tensors, str(nest)) for tensors, nest in map(flatten, given_batches)]
    if not whole:
        raise BadValue("there are no batches to train on: give at least one")
    with tempfile.TemporaryDirectory(prefix="shardwright-") as folder:
        given, result = Path(folder) / "batches.pt", Path(folder) / "result.pt"
        torch.save(whole, given)
        request = TrainRequest(
            plan=str(plan),
            batches=str(given),
            result=str(result),
            seed=seed,
            learning_rate=learning_rate,
            device=device,
        )
        launch("runtime.training:train_rank", num_ranks, request, on_event=on_event)
        return Trained(**torch.load(result, weights_only=True))


def train_rank(request: TrainRequest, emit: Emit) -> None:
    """One rank of `train_plan`."""
    plan = read_plan(request.plan)
    batches = torch.load(request.batches, weights_only=True, mmap=True)
    with join(plan.mesh.num_devices, request.device) as place:
        program = lowered(plan, place.rank, request.seed)
        workload = begin(lambda: workload_of(plan), program, request.seed)
        if request.learning_rate is not None:
            workload = replace(workload, learning_rate=request.learning_rate)
        executor = make_runner(program, workload, place.rank, place.device, seed=request.seed)
        losses: list[float] = []
        times: list[float] = []
        reported: list[Mapping[str, float]] = []
        for number, (batch, nest) in enumerate(batches, start=1):
            _check_nest(batch, nest, workload, number)
            start = time.perf_counter()
            losses.append(executor.step(batch))
            times.append(time.perf_counter() - start)
            reported.append(executor.reported)
            if place.rank == 0:
                emit(
                    {
                        "step": number,
                        "loss": losses[-1],
                        "time_s": times[-1],
                        "losses": reported[-1],
                        **scale_event(executor.loss_scale),
                    }
                )
        parameters = {name: tensor.cpu() for name, tensor in whole_parameters(executor).items()}
        begun = full_tensors(workload)
        parameters |= {name: begun[name].cpu() for name in unused(workload.module, parameters)}
        buffers = {name: tensor.cpu() for name, tensor in whole_buffers(executor).items()}
        if place.rank == 0:
            trained = Trained(
                losses=tuple(losses),
                step_times_s=tuple(times),
                parameters=parameters,
                buffers=buffers,
                reported=tuple(reported),
            )
            torch.save({f.name: getattr(trained, f.name) for f in fields(trained)}, request.result)


def _check_nest(batch: Sequence[Tensor], nest: str, workload: Workload, number: int) -> None:
    """Raises BadValue for a batch that is not nested like the plan's example."""
    expected = len(workload.batch)
    if len(batch) != expected:
        raise BadValue(
            f"batch {number} has {len(batch)} tensors: the plan's model takes {expected}, the target last"
        )
    if workload.nest is not None and nest != str(workload.nest):
        raise BadValue(f"batch {number} is {nest}: the plan was made for {workload.nest}")
