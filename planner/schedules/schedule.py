"""The record of a schedule: for every place of a pipeline, the actions that it runs, in order.

A place is a pipeline rank: the devices that hold one or more stages and run one action at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from planner.program.actions import Action

__all__ = ["BACKWARD", "BODIES", "FORWARD", "INPUT", "WEIGHT", "Schedule", "numbered"]

#: The bodies of a stage, as torch spells them: forward; the whole backward; or its two halves, the
#: gradient of what the stage received, which the stage before it awaits, and that of its weights.
FORWARD, BACKWARD, INPUT, WEIGHT = "F", "B", "I", "W"
BODIES = (FORWARD, BACKWARD, INPUT, WEIGHT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The order of a step's actions: `places[s]` is the place of stage `s`, `orders[p]` what place
    `p` runs. `check_schedule.checked` says whether it can run."""

    name: str
    microbatches: int
    places: tuple[int, ...]
    orders: tuple[tuple[Action, ...], ...]

    @property
    def num_stages(self) -> int:
        return len(self.places)

    @property
    def num_places(self) -> int:
        return len(self.orders)

    def stages_at(self, place: int) -> tuple[int, ...]:
        """The stages that a place holds."""
        return tuple(stage for stage, at in enumerate(self.places) if at == place)


def numbered(slots: Iterable[tuple[str, int]]) -> tuple[Action, ...]:
    """The actions of an order of (body, stage): each body of a stage runs its microbatches from 0
    on. A whole backward counts as both of its halves."""
    counts: dict[tuple[str, int], int] = defaultdict(int)
    actions = []
    for body, stage in slots:
        counted = (INPUT, WEIGHT) if body == BACKWARD else (body,)
        actions.append(Action(body, counts[counted[0], stage], stage))
        for part in counted:
            counts[part, stage] += 1
    return tuple(actions)
