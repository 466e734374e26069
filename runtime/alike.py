"""Checks that all ranks begin with the same values: a digest of every parameter, buffer and batch
tensor, compared before the first step.

Every rank builds the whole model and keeps its shards. Shards of different models would train
without an error, and give a wrong result. Every rank also lowers its own program; whether all
collectives meet is checked if checks are on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor

from cost_models.errors import BadValue
from planner.graph.checking import checked
from planner.program.check_messages import meeting_faults, meetings
from planner.program.program import Program
from planner.stages.pipeline import Pipeline
from planner.state.digests import digests
from planner.workload.workload import Workload
from runtime.parameters import build
from runtime.plain_trainer import in_dtypes

__all__ = ["begin", "check_alike", "check_meetings", "first_difference"]


def begin(make: Callable[[], Workload], program: Program | Pipeline, seed: int) -> Workload:
    """The workload for the first step, in the program's dtypes. Raises BadValue, on all ranks, if
    these differ."""
    workload = in_dtypes(build(make, seed), program)
    if dist.is_initialized():
        check_alike(workload)
    return workload


def check_alike(workload: Workload) -> None:
    """Raises BadValue, naming the first tensor that differs from rank 0's on some rank. All ranks
    call it together."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, digests(_named(workload)))
    message = first_difference(found)
    if message:
        raise BadValue(f"model {workload.name!r}: {message}")


def check_meetings(program: Program | Pipeline, rank: int = 0) -> None:
    """Raises FailedCheck if the collectives of all ranks' programs do not meet. All ranks call
    it together."""
    if not dist.is_initialized():
        return
    mine = (
        {0: meetings(program)}
        if isinstance(program, Program)
        else {stage: meetings(program.programs[stage]) for stage in program.stages_of(rank)}
    )
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    programs = (program,) if isinstance(program, Program) else program.programs
    for stage, one in enumerate(programs):
        found = [by_stage[stage] for by_stage in every if stage in by_stage]
        checked("all ranks", partial(meeting_faults, one.mesh, dict(enumerate(found))))


def first_difference(by_rank: Sequence[dict[str, int]]) -> str:
    """The first tensor that differs between ranks, in words, from each rank's digests by name;
    empty if none does."""
    for rank, other in enumerate(by_rank[1:], start=1):
        for name in (*by_rank[0], *other):
            if by_rank[0].get(name) != other.get(name):
                return (
                    f"{name} has other initial values on rank {rank} than on rank 0: draw it from "
                    "torch, numpy.random, Python's random, or a generator with a seed"
                )
    return ""


def _named(workload: Workload) -> Iterator[tuple[str, Tensor]]:
    state = workload.state()
    for kind, tensors in (
        ("parameter", state.trained),
        ("buffer", state.buffers),
        ("constant", state.constants),
    ):
        for name, tensor in tensors.items():
            yield f"{kind} {name!r}", tensor
    for number, tensor in enumerate(workload.batch):
        yield f"tensor {number} of the example batch", tensor
