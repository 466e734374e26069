"""What a schedule is found for, and the same as arrays.

Microbatches are alike, so some best schedule runs every body of a stage for microbatch 0, 1, 2, ...
in this order: if a body runs them in another, exchanging their numbers from there on leaves every
time and every byte as it was. A **lane** is a body of a stage: what is left to find is how the lanes
of a place take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.program.actions import Action
from planner.schedules.flow import Flow, chain
from planner.schedules.in_flight import Kept
from planner.schedules.schedule import BACKWARD, FORWARD, INPUT, WEIGHT, Schedule
from planner.schedules.timing import Costs

__all__ = ["Floats", "Ints", "Lanes", "Task", "lanes_of", "schedule_of"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Stages at places, `microbatches` to run, what they cost and keep.

    limits: by place, the bytes that microbatches in flight may take, `inf` for no limit. in_two:
    whether backward may run as two halves; if not, only whole.
    """

    places: tuple[int, ...]
    microbatches: int
    costs: Costs
    kept: tuple[Kept, ...]
    limits: tuple[float, ...]
    in_two: bool = True
    flow: Flow | None = None

    @property
    def num_places(self) -> int:
        return len(self.limits)

    @cached_property
    def arrows(self) -> Flow:
        """The flow of activations and gradients, a chain if none is given."""
        return self.flow or chain(len(self.places))

    def transfer(self, source: int, target: int) -> float:
        """Seconds from a stage to another, 0 at the same place."""
        if self.places[source] == self.places[target]:
            return 0.0
        return self.costs.transfers.get((source, target), 0.0)

    def most(self, stage: int) -> float:
        """The most bytes that a microbatch keeps at a stage."""
        return max(self.kept[stage].after_forward, self.kept[stage].after_input)


class Lanes(NamedTuple):
    """The lanes of a task, `width` for each stage: F and B, or F, I and W.

    `place`, `kind` (0, 1, 2), `seconds`, `needs` (lanes that it waits for) and the bytes that it
    `takes` at its start and `gives` at its end, by lane. The lanes that wait for lane `l` are
    `readers[first[l]:first[l + 1]]`, with the seconds of their messages and their channels, -1 at the
    same place. `at` and `lanes` list the lanes of each place in the same way.
    """

    width: int
    place: Ints
    kind: Ints
    seconds: Floats
    needs: Ints
    takes: Floats
    gives: Floats
    first: Ints
    readers: Ints
    delay: Floats
    channel: Ints
    at: Ints
    lanes: Ints


def lanes_of(task: Task, in_two: bool) -> Lanes:
    """The lanes of a task with backward whole, or in two."""
    bodies = (FORWARD, INPUT, WEIGHT) if in_two else (FORWARD, BACKWARD)
    width, stages = len(bodies), len(task.places)
    edges = _edges(task, width)
    readers: list[list[tuple[int, float, int]]] = [[] for _ in range(width * stages)]
    for source, target, delay, channel in edges:
        readers[source].append((target, delay, channel))
    flat = [edge for row in readers for edge in row]
    place = np.repeat(np.array(task.places, np.int64), width)
    order = np.argsort(place, kind="stable")
    takes, gives = np.zeros(width * stages), np.zeros(width * stages)
    for stage in range(stages):
        after = task.kept[stage].after_input if in_two else 0.0
        takes[width * stage] = task.most(stage) if in_two else task.kept[stage].after_forward
        gives[width * stage + 1] = takes[width * stage] - after
        gives[width * stage + width - 1] += after
    return Lanes(
        width=width,
        place=place,
        kind=np.tile(np.arange(width), stages),
        seconds=np.array([seconds.of(body) for seconds in task.costs.stages for body in bodies]),
        needs=np.bincount([target for _, target, _, _ in edges], minlength=width * stages),
        takes=takes,
        gives=gives,
        first=np.cumsum([0, *map(len, readers)]),
        readers=np.array([target for target, _, _ in flat], np.int64),
        delay=np.array([delay for _, delay, _ in flat], np.float64),
        channel=np.array([channel for _, _, channel in flat], np.int64),
        at=np.searchsorted(place[order], np.arange(task.num_places + 1)),
        lanes=order,
    )


def _edges(task: Task, width: int) -> list[tuple[int, int, float, int]]:
    """(lane, lane that waits for it, seconds of the message, channel): microbatch by microbatch."""
    out = [
        (width * stage + k, width * stage + k + 1, 0.0, -1)
        for stage in range(len(task.places))
        for k in range(width - 1)
    ]
    for pairs, k in ((task.arrows.forward, 0), (task.arrows.backward, 1)):
        for u, v in pairs:
            here, there = task.places[u], task.places[v]
            channel = -1 if here == there else here * task.num_places + there
            out.append((width * u + k, width * v + k, task.transfer(u, v), channel))
    return out


def schedule_of(task: Task, lanes: Lanes, turns: Sequence[Sequence[int]]) -> Schedule:
    """The schedule in which the lanes of each place take these turns."""
    bodies = (FORWARD, INPUT, WEIGHT) if lanes.width == 3 else (FORWARD, BACKWARD)
    orders = []
    for row in turns:
        counts = [0] * len(lanes.place)
        actions = []
        for lane in row:
            actions.append(Action(bodies[lane % lanes.width], counts[lane], lane // lanes.width))
            counts[lane] += 1
        orders.append(tuple(actions))
    return Schedule(
        name="found", microbatches=task.microbatches, places=task.places, orders=tuple(orders)
    )
