"""What runs a plan on one rank: the executor of its program or, if it has stages, of those of the
rank.

    plan -> Program | Pipeline -> Executor | PipelineExecutor
"""

from __future__ import annotations

import torch
from torch import Tensor

from planner.plans.pipeline_replay import pipeline_of
from planner.plans.plan import Plan
from planner.plans.replay import program_of
from planner.program.program import Program
from planner.stages.pipeline import Pipeline
from planner.workload.workload import Workload
from runtime.executor import Executor, gather_buffers, gather_parameters
from runtime.groups import make_groups
from runtime.pipeline import PipelineExecutor

__all__ = [
    "Lowered",
    "Runner",
    "has_updated",
    "lowered",
    "make_runner",
    "whole_buffers",
    "whole_gradients",
    "whole_parameters",
]

Lowered = Program | Pipeline
Runner = Executor | PipelineExecutor


def lowered(plan: Plan, rank: int, seed: int = 0) -> Lowered:
    """The program of a plan or, of one with stages, the pipeline, as a rank runs it."""
    if plan.pipeline is None:
        return program_of(plan, rank=rank, seed=seed)
    return pipeline_of(plan, rank=rank, seed=seed)


def make_runner(
    program: Lowered,
    workload: Workload,
    rank: int,
    device: torch.device,
    *,
    seed: int = 0,
    keep_gradients: bool = False,
) -> Runner:
    """The executor of a rank. All ranks make theirs together."""
    if isinstance(program, Pipeline):
        return PipelineExecutor(
            program,
            workload,
            rank=rank,
            device=device,
            keep_gradients=keep_gradients,
            seed=seed,
        )
    return Executor(
        program,
        workload,
        rank=rank,
        groups=make_groups(program, rank),
        device=device,
        keep_gradients=keep_gradients,
        seed=seed,
    )


def has_updated(runner: Runner) -> bool:
    """Whether the last step made an update: the same on all ranks."""
    return runner.loss_scale is None or not runner.loss_scale.skipped


def whole_gradients(runner: Runner) -> dict[str, Tensor]:
    """The gradients of the last update, whole, by parameter name; on rank 0 at least. All ranks call
    it together."""
    if isinstance(runner, PipelineExecutor):
        return runner.whole_gradients()
    return gather_parameters(runner, runner.gradients)


def whole_parameters(runner: Runner) -> dict[str, Tensor]:
    """The same of the parameters."""
    if isinstance(runner, PipelineExecutor):
        return runner.whole_parameters()
    return gather_parameters(runner)


def whole_buffers(runner: Runner) -> dict[str, Tensor]:
    """The same of the buffers that the step changes."""
    if isinstance(runner, PipelineExecutor):
        return runner.whole_buffers()
    return gather_buffers(runner)
