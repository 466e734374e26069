"""What a place holds for microbatches that are between their forward and their backward.

It follows from the order of the place alone: no times are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.schedules.schedule import FORWARD, INPUT, WEIGHT, Schedule

__all__ = ["Kept", "held", "microbatches_in_flight", "peaks"]


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes that a microbatch keeps at a stage: after its forward, and between the two halves of
    its backward, if it has halves."""

    after_forward: float
    after_input: float


def held(schedule: Schedule, kept: Sequence[Kept]) -> tuple[tuple[float, ...], ...]:
    """For each place the bytes that it holds during each of its actions, in order: what earlier
    ones left, what this forward leaves, and what this backward frees when it ends."""
    out = []
    for order in schedule.orders:
        now, row = 0.0, []
        for action in order:
            stage = kept[action.stage]
            if action.body == FORWARD:
                now += stage.after_forward
                row.append(now)
            elif action.body == INPUT:
                row.append(now + max(0.0, stage.after_input - stage.after_forward))
                now += stage.after_input - stage.after_forward
            else:
                row.append(now)
                now -= stage.after_input if action.body == WEIGHT else stage.after_forward
        out.append(tuple(row))
    return tuple(out)


def peaks(schedule: Schedule, kept: Sequence[Kept]) -> tuple[float, ...]:
    """For each place the most bytes that it holds at once."""
    return tuple(max(row) for row in held(schedule, kept))


def microbatches_in_flight(schedule: Schedule) -> tuple[tuple[int, ...], ...]:
    """For each place, during each of its actions, how many microbatches of its stages have run
    forward and not all of backward; with two stages at a place, a microbatch counts in each."""
    rows = held(schedule, [Kept(1.0, 1.0)] * schedule.num_stages)
    return tuple(tuple(map(round, row)) for row in rows)
