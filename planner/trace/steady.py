"""Traces a step until it stays the same: a flag that forward turns off is off from the start, and
state that it keeps or numbers that it draws must not matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cost_models.errors import NotTraceable
from planner.state import chance
from planner.state.hung import turned
from planner.state.source_line import is_own
from planner.workload.workload import Workload

__all__ = ["steady"]

Traced = TypeVar("Traced")

#: A forward that has not settled after this many traces counts as one that never does.
_TIMES = 3


def steady(workload: Workload, trace: Callable[[], Traced]) -> Traced:
    """The result of `trace` once the step leaves its parameters' flags unchanged.

    Raises NotTraceable if it never does, and if a step draws from Python's or numpy's generator:
    every step would then use the first step's draws. Whether a draw decides anything cannot be
    determined: a layer that is skipped once in a hundred steps is there under most seeds.
    """
    drawn = chance.state()
    traced = _settled(workload, trace)
    if chance.state() != drawn:
        place = chance.drawn_from(trace, is_own)
        raise NotTraceable(
            f"model {workload.name!r} draws from Python's or numpy's random numbers in its "
            f"step{f' at {place}' if place else ''}: they would be the same in every step; draw "
            "from torch"
        )
    return traced


def _settled(workload: Workload, trace: Callable[[], Traced]) -> Traced:
    for _ in range(_TIMES):
        before = {name: p.requires_grad for name, p in workload.module.named_parameters()}
        failed: Exception | None = None
        try:
            traced = trace()
        except Exception as error:  # noqa: BLE001
            # Raised again below, unless a flag was turned that the step now starts with.
            failed = error
        off, on = turned(before, workload.module)
        if on:
            raise NotTraceable(
                f"model {workload.name!r} sets requires_grad of parameter {on[0]!r} in its "
                "forward: set it where the model is made"
            )
        if failed is not None and not off:
            raise failed
        if not off:
            return traced
    raise NotTraceable(
        f"model {workload.name!r} sets requires_grad of parameter {off[0]!r} in one step and not "
        "in another: freeze it where it is made"
    )
