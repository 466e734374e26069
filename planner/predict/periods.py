"""The simulated time of a step in microbatches, without simulating them all.

Program, cluster -> Simulated. Actions of one body that follow each other do the same, so after the
first few each is the one before it, a period later: a task starts when its inputs, its lane and the
host are ready, and all of these are then a period later too. So of a long run only as many actions
are simulated as it takes to see that; the others are inserted, exactly. `whole` has their events.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cost_models.breakdown import Breakdown, breakdown
from cost_models.machine import Cluster
from cost_models.simulator import Simulation
from cost_models.task import COMPUTE, Task
from cost_models.timeline import Event, Timeline
from planner.predict.tasks import Tasks, prefix_of
from planner.program.actions import Action, runs
from planner.program.program import Program

__all__ = ["Simulated", "parts_of", "simulated", "whole"]

#: Two times are the same if they differ by no more than this share of the step: rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """A step of which `timeline` has only `actions`. `left_out` more actions, which each take
    `period` seconds, follow the action at index `after`, of which they are copies."""

    program: Program
    actions: tuple[Action, ...]
    timeline: Timeline
    after: int = 0
    left_out: int = 0
    period: float = 0.0

    @property
    def step_time(self) -> float:
        """Seconds of the whole step."""
        return self.timeline.step_time + self.left_out * self.period


def simulated(program: Program, cluster: Cluster, *, every_action: bool = False) -> Simulated:
    """The simulation of a program: of the run of like actions that has the most instructions, those
    until they are periodic, or all of them."""
    longest = max(
        runs(program.actions), key=lambda run: len(run) * len(program.bodies[run[0].body])
    )
    begin = program.actions.index(longest[0])
    end = begin + len(longest)
    steps = _Steps(program, cluster)
    steps.load(program.actions[:begin])
    after, period = 0, None
    if not every_action and len(longest) > 3:
        after, period = steps.until_periodic(longest)
    left_out = 0 if period is None else len(longest) - (len(steps.actions) - begin)
    if period is None:
        steps = _Steps(program, cluster)
        steps.load(program.actions[:end])
    steps.load(program.actions[end:])
    steps.simulation.run()
    return Simulated(
        program=program,
        actions=tuple(steps.actions),
        timeline=steps.simulation.timeline(),
        after=after,
        left_out=left_out,
        period=period or 0.0,
    )


class _Steps:
    """A simulation to which actions are added one by one."""

    def __init__(self, program: Program, cluster: Cluster) -> None:
        self.program, self.tasks = program, Tasks(program, cluster)
        self.simulation = Simulation(1, 0, cluster.device.overlap)
        self.actions: list[Action] = []
        self.loaded: list[list[Task]] = []

    def load(self, actions: Sequence[Action]) -> None:
        """Adds actions behind those before."""
        for action in actions:
            self.actions.append(action)
            self.loaded.append(self.tasks.of(action))
            self.simulation.load(self.loaded[-1])

    def until_periodic(self, alike: Sequence[Action]) -> tuple[int, float | None]:
        """Adds actions of one body until one is the one before it, a period later: that action's
        index, and the period. None if none is, or if one has ended before the next was added."""
        before: list[float] = []
        for action in alike:
            self.load([action])
            at = len(self.actions) - 2
            if action == alike[0]:
                continue
            self.simulation.run_until(self.loaded[at])
            if self._has_computed():
                break
            now = self._times(at)
            period = self._period(before, now, at)
            if period is not None:
                return at, period
            before = now
        return 0, None

    def _has_computed(self) -> bool:
        """Whether the last action's compute has ended: the next one's could have begun by now."""
        computes = [task for task in self.loaded[-1] if task.stream == COMPUTE]
        return not computes or (0, computes[-1].id) in self.simulation.done

    def _times(self, at: int) -> list[float]:
        """The starts and ends of an action's events, in an order that depends on their ids only."""
        prefix = prefix_of(self.actions[at], self.program)
        found = sorted((e.id, e) for e in self.simulation.events if e.id.startswith(prefix))
        return [time for _, event in found for time in (event.start, event.end)]

    def _period(self, before: list[float], now: list[float], at: int) -> float | None:
        """The seconds from each event of an action to the same of the next; None if they differ,
        or if the host takes longer: then it is ahead, and will not be for ever."""
        later = [b - a for a, b in zip(before, now, strict=False)]
        if not later or max(later) - min(later) > _ROUNDING * max(now):
            return None
        host = math.fsum(task.host_duration for task in self.loaded[at])
        return later[-1] if later[-1] >= host * (1 - _ROUNDING) else None


def parts_of(found: Simulated) -> Breakdown:
    """The step time of the whole step in three parts."""
    parts = breakdown(found.timeline, 0)
    if not found.left_out:
        return parts
    more = breakdown(_one_period(found), 0)
    return Breakdown(
        compute=parts.compute + found.left_out * more.compute,
        exposed_communication=parts.exposed_communication
        + found.left_out * more.exposed_communication,
        idle=parts.idle + found.left_out * more.idle,
    )


def _one_period(found: Simulated) -> Timeline:
    """What runs in one period: the events of an action, and the ends of those of the one before it
    that run on into it."""
    prefix = prefix_of(found.actions[found.after], found.program)
    alike = [event for event in found.timeline.events if event.id.startswith(prefix)]
    begin, period = min(event.start for event in alike), found.period
    events: list[Event] = []
    for event in alike:
        start, end = event.start - begin, event.end - begin
        while end > start >= period:
            start, end = start - period, end - period
        while end > start:
            events.append(replace(event, start=start, end=min(end, period)))
            start, end = 0.0, end - period
    return Timeline(events=tuple(events), step_time=period)


def whole(found: Simulated) -> Timeline:
    """The timeline of all actions. The id of an event is that of its instruction."""
    if len(found.program.actions) == 1:
        return found.timeline
    places = {str(action): place for place, action in enumerate(found.actions)}
    copied = found.actions[found.after]
    shift = found.left_out * found.period
    events: list[Event] = []
    for event in found.timeline.events:
        text, _, name = event.id.partition(" ")
        place = places[text]
        action, later = found.actions[place], shift if place > found.after else 0.0
        more = found.left_out if place > found.after and action.body == copied.body else 0
        plain = replace(
            event,
            id=name,
            microbatch=action.microbatch + more,
            start=event.start + later,
            end=event.end + later,
        )
        events.append(plain)
        if action == copied:
            events += _copies(plain, found)
    return replace(
        found.timeline,
        events=tuple(sorted(events, key=lambda event: (event.start, event.device, event.end))),
        step_time=found.step_time,
    )


def _copies(event: Event, found: Simulated) -> Iterator[Event]:
    """The same event of the actions that are left out."""
    for number in range(1, found.left_out + 1):
        yield replace(
            event,
            microbatch=event.microbatch + number,
            start=event.start + number * found.period,
            end=event.end + number * found.period,
        )
