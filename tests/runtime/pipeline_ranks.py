"""What the tests of pipelines run on every rank."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch

from planner.plans.plan_file import read_plan
from planner.plans.replay import workload_of
from runtime.executor import Executor
from runtime.runner import lowered
from runtime.worker import RunRequest, RunResult, join, train


def runs(paths: list[str], emit: Any) -> list[RunResult | None]:
    """Every plan, verified, one after another."""
    with join(4) as place:
        out = []
        for path in paths:
            plan = read_plan(path)
            request = RunRequest(plan=path, num_steps=2, verify=True, record=True)
            out.append(
                train(
                    lowered(plan, place.rank),
                    lambda plan=plan: workload_of(plan),
                    request,
                    place,
                    emit,
                )
            )
        return out


def failing(payload: tuple[str, bool], emit: Any) -> None:
    """The last stage fails in its second microbatch: by an error, or killed."""
    path, killed = payload
    plan = read_plan(path)
    act = Executor.act

    def fails(self: Executor, bodies: Any, action: Any, *rest: Any) -> Any:
        if (action.stage, action.body[0], action.microbatch) == (1, "F", 1):
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)
            (source,) = (s.value for s in self.program.inputs if s.kind == "received")
            self._state[source] = torch.zeros(3, 5, 7)
        return act(self, bodies, action, *rest)

    Executor.act = fails  # type: ignore[method-assign]
    with join(2) as place:
        train(
            lowered(plan, place.rank), lambda: workload_of(plan), RunRequest(plan=path), place, emit
        )
