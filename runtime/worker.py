"""The work of every rank: it reads the plan, joins the group, trains, and sends the results to rank
0."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from cost_models.errors import BadValue, RunFailed
from cost_models.timeline import Timeline
from planner.graph.checking import checking, is_checking
from planner.workload.workload import Workload
from runtime.alike import begin, check_meetings
from runtime.heap import keep_freed_memory
from runtime.launcher import Emit
from runtime.loss_scale import scale_event
from runtime.reference import reference_run
from runtime.runner import (
    Lowered,
    Runner,
    has_updated,
    lowered,
    make_runner,
    whole_buffers,
    whole_gradients,
    whole_parameters,
)
from runtime.verify import Verification, compare

__all__ = ["Place", "RunRequest", "RunResult", "join", "merge_timelines", "run", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """The request for a run: the plan's file, how many steps, and whether to verify, to record a
    timeline and to check the programs."""

    plan: str
    num_steps: int = 10
    seed: int = 0
    verify: bool = False
    record: bool = False
    device: str = ""  # "cpu" or "cuda"; by default CUDA if there is any
    check: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The result of a run. Step times are this rank's, in seconds; the peak is that of the device
    that holds most. `losses` has the loss of every step; if that is a sum, `losses_by_name` has its
    terms. If the loss is scaled, `loss_scales` has its scale after every step, and `num_skipped`
    steps made no update, since gradients overflowed."""

    num_ranks: int
    backend: str
    losses: tuple[float, ...]
    step_times_s: tuple[float, ...]
    peak_memory_bytes: int
    shared_memory_bytes: int = 0
    losses_by_name: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    verification: Verification | None = None
    timeline: Timeline | None = None
    loss_scales: tuple[float, ...] = ()
    num_skipped: int = 0

    def as_json(self) -> dict[str, Any]:
        """The keys of `plan run --json`."""
        return {
            "num_ranks": self.num_ranks,
            "backend": self.backend,
            "losses": list(self.losses),
            "losses_by_name": {name: list(losses) for name, losses in self.losses_by_name.items()},
            "step_time_s": statistics.median(self.step_times_s),
            "step_times_s": list(self.step_times_s),
            "peak_memory_bytes": self.peak_memory_bytes,
            "shared_memory_bytes": self.shared_memory_bytes,
            **({"loss_scales": list(self.loss_scales)} if self.loss_scales else {}),
            **({"num_skipped": self.num_skipped} if self.loss_scales else {}),
            "verdict": self.verification.verdict if self.verification is not None else None,
            "verify": asdict(self.verification) if self.verification is not None else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A process's place among the ranks of a run."""

    rank: int
    num_ranks: int
    device: torch.device
    backend: str


@contextlib.contextmanager
def join(num_ranks: int, device: str = "") -> Iterator[Place]:
    """Joins the process group that the environment names (torchrun's variables) and leaves it at
    the end.

    On an error it does not leave: that would make the others fail, and their errors would arrive
    before the cause.

    Raises `RunFailed` if the number of processes is not `num_ranks`, or if the group cannot be
    made.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world != num_ranks:
        raise RunFailed(
            f"the plan needs {num_ranks} processes but {world} were started: start it with "
            f"--nproc-per-node {num_ranks}"
        )
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_device(kind)
    keep_freed_memory()
    place = _device(kind)
    backend = "nccl" if kind == "cuda" else "gloo"
    if num_ranks > 1:
        _init(backend, place)
    yield Place(rank=rank, num_ranks=num_ranks, device=place, backend=backend)
    if dist.is_initialized():
        dist.destroy_process_group()


def run(request: RunRequest, emit: Emit) -> RunResult | None:
    """Runs a plan on this rank; returns the result on rank 0, None on the others."""
    from planner.plans.plan_file import read_plan
    from planner.plans.replay import workload_of

    plan = read_plan(request.plan)
    with join(plan.mesh.num_devices, request.device) as place:
        with checking(request.check):
            program = lowered(plan, place.rank, request.seed)
            if is_checking():
                check_meetings(program, place.rank)
        return train(program, lambda: workload_of(plan), request, place, emit)


def train(
    program: Lowered, make: Callable[[], Workload], request: RunRequest, place: Place, emit: Emit
) -> RunResult | None:
    """Trains a program, or the stages of a pipeline, on the workload's example batch; returns the
    result on rank 0, None on the others.

    Rank 0 emits `{"step", "loss", "time_s", "losses"}` after each step, with "loss_scale" and
    "skipped" if the loss is scaled. One more step is recorded, for peak memory and the timeline.
    """
    if request.verify:
        torch.backends.cudnn.allow_tf32 = False  # the reference is in full float32
    workload = begin(make, program, request.seed)
    executor = make_runner(
        program,
        workload,
        place.rank,
        place.device,
        seed=request.seed,
        keep_gradients=request.verify,
    )
    losses, several, times, gradients, scales = _steps(executor, workload, request, place, emit)
    parameters = whole_parameters(executor) if request.verify else {}
    buffers = whole_buffers(executor) if request.verify else {}
    timeline = _gather_timelines(executor.recorded_step(workload.batch), place)
    peak = _largest(executor.peak_memory_bytes, place)
    if place.rank != 0:
        return None
    verification = None
    if request.verify:
        reference = reference_run(
            make,
            program,
            seed=request.seed,
            num_steps=request.num_steps,
            began=workload,
            scales=scales,
        )
        verification = compare(losses, gradients, parameters, reference, buffers, scales)
    return RunResult(
        num_ranks=place.num_ranks,
        backend=place.backend,
        losses=tuple(losses),
        step_times_s=tuple(times),
        peak_memory_bytes=peak,
        shared_memory_bytes=executor.shared_memory_bytes,
        losses_by_name={name: tuple(step[name] for step in several) for name in several[0]},
        verification=verification,
        timeline=timeline if request.record else None,
        loss_scales=tuple(scales),
        num_skipped=0 if executor.loss_scale is None else executor.loss_scale.num_skipped,
    )


def _steps(
    executor: Runner, workload: Workload, request: RunRequest, place: Place, emit: Emit
) -> tuple[list[float], list[dict[str, float]], list[float], dict[str, torch.Tensor], list[float]]:
    """The losses, their terms by name, the step times; if verifying, the gradients of the first
    step that is not skipped; if the loss is scaled, its scales after every step."""
    losses: list[float] = []
    several: list[dict[str, float]] = []
    times: list[float] = []
    gradients: dict[str, torch.Tensor] = {}
    scales: list[float] = []
    local: Any = executor.local_batch(workload.batch)
    executor.warm(local)
    for step in range(request.num_steps):
        _synchronize(place)
        start = time.perf_counter()
        losses.append(executor.step_local(local))
        times.append(time.perf_counter() - start)
        several.append(executor.reported)
        if executor.loss_scale is not None:
            scales.append(executor.loss_scale.scale)
        if request.verify and executor.keep_gradients and has_updated(executor):
            gradients = whole_gradients(executor)
            executor.keep_gradients = False
        if place.rank == 0:
            done = {
                "step": step + 1,
                "loss": losses[-1],
                "time_s": times[-1],
                "losses": several[-1],
            }
            emit(done | scale_event(executor.loss_scale))
    return losses, several, times, gradients, scales


def merge_timelines(timelines: Sequence[Timeline]) -> Timeline:
    """One timeline of all devices; the times of each count from its own start of the step, just
    after a barrier."""
    return Timeline(
        events=tuple(
            sorted((e for t in timelines for e in t.events), key=lambda event: event.start)
        ),
        memory=tuple(sample for t in timelines for sample in t.memory),
        step_time=max(t.step_time for t in timelines),
    )


def _check_device(kind: str) -> None:
    """Raises `BadValue` if this process has no CUDA device of its own to run on."""
    if kind != "cuda":
        return
    if not torch.cuda.is_available():
        raise BadValue(
            "--device cuda: torch finds no CUDA device here; leave --device out, or run on a "
            "machine that has one"
        )
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= count:
        raise BadValue(
            f"--device cuda: process {local + 1} of this machine has no CUDA device, there are "
            f"{count}; add --device cpu"
        )


def _device(kind: str) -> torch.device:
    if kind == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device(kind)


def _init(backend: str, device: torch.device) -> None:
    try:
        dist.init_process_group(backend, device_id=device if backend == "nccl" else None)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        if "EADDRINUSE" in str(error) or "already in use" in str(error):
            raise RunFailed(
                f"the port of {address} is in use: choose another with --master-port"
            ) from error
        first = str(error).strip().splitlines()[0]
        raise RunFailed(f"cannot join the other processes at {address}: {first}") from error


def _synchronize(place: Place) -> None:
    if place.device.type == "cuda":
        torch.cuda.synchronize(place.device)
    if place.num_ranks > 1:
        dist.barrier()


def _gather_timelines(timeline: Timeline, place: Place) -> Timeline:
    if place.num_ranks == 1:
        return timeline
    found: list[Any] | None = [None] * place.num_ranks if place.rank == 0 else None
    dist.gather_object(timeline, found)
    return merge_timelines(found) if found is not None else timeline


def _largest(value: int, place: Place) -> int:
    if place.num_ranks == 1:
        return value
    found = torch.tensor(value, device=place.device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)
