"""The simulated time of a step in microbatches, without simulating them all.

Program, cluster -> Simulated. Actions of one body that follow each other do the same, so after the
first few each is the one before it, a period later: a task starts when its inputs, its lane and the
host are ready, and all of these are then a period later too. So only as many actions of a long run
are simulated as it takes to see that; the others are inserted, exactly. `whole` has their events.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cost_models.breakdown import Breakdown, breakdown
from cost_models.machine import Cluster
from cost_models.simulator import simulate
from cost_models.timeline import Event, Timeline
from planner.predict.tasks import prefix_of, tasks_of
from planner.program.actions import Action, runs
from planner.program.program import Program

__all__ = ["Simulated", "parts_of", "simulated", "whole"]

#: So many actions of a run are simulated first; if they are not periodic yet, twice as many.
_FIRST_TRY = 2
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


def simulated(program: Program, cluster: Cluster, *, at_first: int = _FIRST_TRY) -> Simulated:
    """The simulation of a program: of its longest run of like actions, `at_first` and then twice
    as many are simulated until they are periodic."""
    longest = max(runs(program.actions), key=len)
    begin = program.actions.index(longest[0])
    count = at_first
    while count < len(longest):
        kept = longest[: count - 1] + longest[-1:]
        actions = (
            *program.actions[:begin],
            *kept,
            *program.actions[begin + len(longest) :],
        )
        timeline = _simulate(program, actions, cluster)
        at = begin + count - 2
        period = _period(program, timeline, actions[at], actions[at + 1])
        host = _host_seconds(program, actions[at], cluster)
        if period is not None and period >= host * (1 - _ROUNDING):
            return Simulated(
                program=program,
                actions=actions,
                timeline=timeline,
                after=at,
                left_out=len(longest) - count,
                period=period,
            )
        count *= 2
    return Simulated(
        program=program,
        actions=program.actions,
        timeline=_simulate(program, program.actions, cluster),
    )


def _simulate(program: Program, actions: Sequence[Action], cluster: Cluster) -> Timeline:
    tasks = tasks_of(program, actions, cluster)
    return simulate(tasks, num_devices=1, initial_memory=0, overlap=cluster.device.overlap)


def _host_seconds(program: Program, action: Action, cluster: Cluster) -> float:
    """Seconds of the host to issue an action. If they are longer than the period, the host is ahead
    now, and it will not be for ever."""
    return math.fsum(task.host_duration for task in tasks_of(program, (action,), cluster))


def _period(program: Program, timeline: Timeline, one: Action, two: Action) -> float | None:
    """The seconds from each event of an action to the same of the next; None if they differ."""
    first, second = (_times(program, timeline, action) for action in (one, two))
    later = [b - a for a, b in zip(first, second, strict=True)]
    near = max(later) - min(later) <= _ROUNDING * timeline.step_time
    return later[-1] if near else None


def _times(program: Program, timeline: Timeline, action: Action) -> list[float]:
    """The starts and ends of an action's events, in an order that depends on their ids only."""
    prefix = prefix_of(action, program)
    found = sorted((e.id.removeprefix(prefix), e) for e in _of(timeline, prefix))
    return [time for _, event in found for time in (event.start, event.end)]


def _of(timeline: Timeline, prefix: str) -> Iterator[Event]:
    return (event for event in timeline.events if event.id.startswith(prefix))


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
    alike = list(_of(found.timeline, prefix))
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
    names = {str(action): action for action in found.actions}
    if len(found.program.actions) == 1:
        return found.timeline
    shift = found.left_out * found.period
    later = {str(action) for action in found.actions[found.after + 1 :]}
    copied = str(found.actions[found.after])
    events: list[Event] = []
    for event in found.timeline.events:
        action, _, name = event.id.partition(" ")
        plain = replace(event, id=name, microbatch=names[action].microbatch)
        if action in later:
            plain = replace(plain, start=event.start + shift, end=event.end + shift)
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
