"""One rank of `pipelining.py`: our plans and torch's own pipelines, a step of each in turn.

torch's stages are the same blocks of the same module, made from the same seed, with torch's fused
Adam; shapes are given by examples, gradients are divided by the number of microbatches, and outputs
are not collected. The head of the last stage works on two dims: with backward in two halves, torch
refuses a stage that ends in a view.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from planner.plans.plan import Plan
from planner.plans.plan_file import read_plan
from planner.plans.replay import workload_of
from planner.workload.workload import Workload
from runtime.parameters import build
from runtime.pipeline import PipelineExecutor
from runtime.runner import lowered, make_runner
from runtime.worker import Place, join

__all__ = ["SCHEDULES", "Request", "measure"]

#: Steps before the first that counts.
WARM_UP = 3

#: torch's classes by our names: those of one stage a rank, and of several.
ONE: dict[str, Any] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
SEVERAL: dict[str, Any] = {"interleaved": ScheduleInterleaved1F1B, "zbv": ScheduleZBVZeroBubble}
SCHEDULES = (*ONE, *SEVERAL)

Step = Callable[[], float]


@dataclass(frozen=True)
class Request:
    """A plan file by schedule, the blocks at which its stages begin, and the rounds that count."""

    plans: Mapping[str, str]
    begins: Mapping[str, Sequence[int]]
    rounds: int


def measure(request: Request, emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """On one rank: seconds of every step by run, `ours 1f1b` and so on, losses of the first step, and
    the processor seconds of this rank."""
    first = read_plan(next(iter(request.plans.values())))
    with join(first.mesh.num_devices, "cpu") as place:
        runs: dict[str, Step] = {}
        for name, path in request.plans.items():
            plan = read_plan(path)
            runs[f"ours {name}"] = _ours(plan, place)
            runs[f"torch {name}"] = _torch(plan, name, request.begins[name], place)
        losses = {name: _loss(step()) for name, step in runs.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        busy: dict[str, list[float]] = {name: [] for name in runs}
        names = list(runs)
        for number in range(request.rounds + WARM_UP):
            at = number % len(names)
            for name in names[at:] + names[:at]:
                dist.barrier()
                start, used = time.perf_counter(), time.process_time()
                runs[name]()
                times[name].append(time.perf_counter() - start)
                busy[name].append(time.process_time() - used)
    return {
        "times": {name: taken[WARM_UP:] for name, taken in times.items()},
        "busy": {name: taken[WARM_UP:] for name, taken in busy.items()},
        "losses": losses,
    }


def _loss(mine: float) -> float:
    """The loss, which one rank knows or all do."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return next(loss for loss in found if loss == loss)


def _ours(plan: Plan, place: Place) -> Step:
    workload = build(lambda: workload_of(plan), 0)
    runner = make_runner(lowered(plan, place.rank), workload, place.rank, place.device)
    assert isinstance(runner, PipelineExecutor)
    local = runner.local_batch(workload.batch)
    return lambda: runner.step_local(local)


class Part(nn.Module):
    """Some blocks of the decoder, with what comes before the first and after the last one."""

    def __init__(self, module: nn.Module, begin: int, end: int, last: bool) -> None:
        super().__init__()
        whole: Any = module
        self.wte, self.wpe = (whole.wte, whole.wpe) if begin == 0 else (None, None)
        self.h = nn.ModuleList(list(whole.h)[begin:end])
        self.ln_f, self.lm_head = (whole.ln_f, whole.lm_head) if last else (None, None)

    def forward(self, x: Tensor) -> Tensor:
        if self.wte is not None:
            assert self.wpe is not None
            x = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
        for block in self.h:
            x = block(x)
        if self.ln_f is not None:
            assert self.lm_head is not None
            x = self.lm_head(self.ln_f(x).flatten(0, 1))
        return x


def _torch(plan: Plan, name: str, begins: Sequence[int], place: Place) -> Step:
    """A step of torch's pipeline."""
    assert plan.pipeline is not None
    workload = build(lambda: workload_of(plan), 0)
    ids, targets = workload.batch
    m, ranks = plan.ask.microbatches, place.num_ranks
    numbers = _stages_at(name, len(begins), place.rank, ranks)
    stages = [_stage(workload, begins, number, ids, m) for number in numbers]
    parameters = [p for stage in stages for p in stage.submod.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=workload.learning_rate, fused=True)
    own = {"loss_fn": _mean}
    schedule = ONE[name](stages[0], m, **own) if name in ONE else SEVERAL[name](stages, m, **own)
    inputs = (ids,) if any(stage.is_first for stage in stages) else ()
    last = any(stage.is_last for stage in stages)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        given = {"target": targets, "losses": losses} if last else {}
        schedule.step(*inputs, return_outputs=False, **given)
        optimizer.step()
        return float(torch.stack(losses).mean()) if losses else float("nan")

    return step


def _stages_at(name: str, stages: int, rank: int, ranks: int) -> list[int]:
    if name == "zbv":
        return [rank, stages - 1 - rank]
    return list(range(rank, stages, ranks))


def _stage(
    workload: Workload, begins: Sequence[int], number: int, ids: Tensor, microbatches: int
) -> PipelineStage:
    whole: Any = workload.module
    ends = [*begins[1:], len(whole.h)]
    part = Part(whole, begins[number], ends[number], number == len(begins) - 1)
    some = ids[: len(ids) // microbatches]
    example = some if number == 0 else torch.zeros(*some.shape, whole.wte.weight.shape[1])
    return PipelineStage(part, number, len(begins), torch.device("cpu"), input_args=(example,))


def _mean(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets.reshape(-1))
