"""When every action of a schedule starts and ends, given the seconds of each stage's bodies.

An action starts when the one before it at its place has ended and what it reads has arrived.
Messages of a channel travel one after another. The cost is linear in actions, whatever the number
of devices of a place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from planner.schedules.flow import Arrows, Flow, arrows, runnable
from planner.schedules.schedule import BACKWARD, FORWARD, INPUT, WEIGHT, Schedule

__all__ = ["Costs", "StageSeconds", "Timing", "timed", "uniform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds:
    """Seconds of the bodies of a stage, for one microbatch."""

    forward: float
    backward: float
    input: float = 0.0
    weight: float = 0.0

    def of(self, body: str) -> float:
        """The seconds of a body by its letter."""
        return {
            FORWARD: self.forward,
            BACKWARD: self.backward,
            INPUT: self.input,
            WEIGHT: self.weight,
        }[body]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a step's time depends on, in seconds.

    stages: by stage. transfers: by (stage that sends, stage that receives, at another place), 0 if
    not named. overlapped: whether a place computes while it sends; if not, it is busy until what it
    sends has arrived. before, after: by place, from the start of the step to its first action and
    from its last to its end (sums over data-parallel ranks that nothing hides, the update); 0 if
    empty. together: whether `after` begins at all places when the last has run its actions, as if
    gradients are clipped by the norm of all.
    """

    stages: tuple[StageSeconds, ...]
    transfers: Mapping[tuple[int, int], float] = field(default_factory=dict)
    overlapped: bool = True
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()
    together: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A schedule with the start and the end of its actions, by place, in the order in which they
    run, in seconds from the start of the step."""

    schedule: Schedule
    starts: tuple[tuple[float, ...], ...]
    ends: tuple[tuple[float, ...], ...]
    step_time: float
    #: Seconds that each place spends before its actions and after them, and when the latter begin.
    before: tuple[float, ...]
    after: tuple[float, ...]
    after_starts: tuple[float, ...]

    @property
    def busy(self) -> tuple[float, ...]:
        """Seconds that each place works."""
        return tuple(
            before + after + sum(map(float.__sub__, ends, starts))
            for before, after, starts, ends in zip(
                self.before, self.after, self.starts, self.ends, strict=True
            )
        )

    @property
    def bubbles(self) -> tuple[float, ...]:
        """Seconds that each place waits."""
        return tuple(self.step_time - busy for busy in self.busy)

    @property
    def bubble_share(self) -> float:
        """Share of all places' time in which they wait."""
        return sum(self.bubbles) / (self.step_time * len(self.starts) or 1.0)


def uniform(
    stages: int, forward: float, input_gradient: float, weight_gradient: float
) -> tuple[StageSeconds, ...]:
    """Stages that all take the same, a whole backward as long as its halves."""
    backward = input_gradient + weight_gradient
    one = StageSeconds(
        forward=forward, backward=backward, input=input_gradient, weight=weight_gradient
    )
    return (one,) * stages


def timed(schedule: Schedule, costs: Costs, flow: Flow | None = None) -> Timing:
    """The starts and ends of a schedule that `check_schedule.checked` accepts."""
    graph = arrows(schedule, flow)
    order = runnable(graph)
    assert len(order) == len(graph.actions), "the schedule deadlocks"
    before = costs.before or (0.0,) * schedule.num_places
    after = costs.after or (0.0,) * schedule.num_places
    starts, ends, free = _walk(graph, order, schedule, costs, before)
    last = [max(free)] * len(free) if costs.together else free
    edges = list(zip(graph.firsts, graph.firsts[1:], strict=False))
    return Timing(
        schedule=schedule,
        starts=tuple(tuple(starts[first:end]) for first, end in edges),
        ends=tuple(tuple(ends[first:end]) for first, end in edges),
        step_time=max(map(float.__add__, last, after)),
        before=before,
        after=after,
        after_starts=tuple(last),
    )


def _walk(
    graph: Arrows, order: Sequence[int], schedule: Schedule, costs: Costs, before: Sequence[float]
) -> tuple[list[float], list[float], list[float]]:
    """Starts and ends of all actions, and when each place is free after its last."""
    seconds = {
        (body, s): stage.of(body)
        for s, stage in enumerate(costs.stages)
        for body in (FORWARD, BACKWARD, INPUT, WEIGHT)
    }
    starts, ends = [0.0] * len(order), [0.0] * len(order)
    arrived = [0.0] * len(order)
    free = list(before)
    channels: dict[tuple[int, int], float] = {}
    for i in order:
        action, place = graph.actions[i], graph.place_of[i]
        start = arrived[i] if arrived[i] > free[place] else free[place]
        end = left = start + seconds[action.body, action.stage]
        starts[i], ends[i] = start, end
        for reader in graph.readers[i]:
            there, arrival = graph.place_of[reader], end
            if there != place:
                pair = (action.stage, graph.actions[reader].stage)
                arrival = max(end, channels.get((place, there), 0.0)) + costs.transfers.get(
                    pair, 0.0
                )
                channels[place, there] = arrival
                left = max(left, arrival)
            arrived[reader] = max(arrived[reader], arrival)
        free[place] = end if costs.overlapped else left
    return starts, ends, free
