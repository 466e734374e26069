"""The prediction of a pipeline: the seconds of the bodies of its stages, the schedule in time, the
memory of every stage.

Pipeline, clusters of its stages -> PipelinePrediction. A body is simulated once, alone; actions of
different microbatches do not run beside each other on one device, so an action takes what its body
does. An approximation: what the host issues ahead over the end of an action is not counted. Stages
with the same program are simulated once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cost_models.machine import Cluster
from planner.predict.footprint import CATEGORIES, ActionMemory, memory_of_actions
from planner.predict.periods import parts_of, simulated
from planner.program.actions import Action
from planner.program.program import Program
from planner.schedules.flow import Flow
from planner.schedules.schedule import Schedule
from planner.schedules.timing import Costs, StageSeconds, Timing, timed
from planner.stages.pipeline import Pipeline

__all__ = [
    "BodyTimes",
    "PipelinePrediction",
    "StagePrediction",
    "flow_of",
    "place_memory",
    "predict_pipeline",
    "stage_costs",
    "stage_prediction",
]

_LETTERS = ("F", "B", "I", "W")


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyTimes:
    """Seconds of a body alone: the whole, and its parts as in a breakdown."""

    seconds: float
    compute: float
    exposed_communication: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePrediction:
    """A stage: the times of its bodies by name, and its memory, action by action."""

    bodies: Mapping[str, BodyTimes]
    memory: tuple[ActionMemory, ...]

    def of(self, letter: str) -> float:
        """Seconds of a microbatch's forward, backward or half of it: of one that is neither the
        first nor the last, if there is one; 0 if the stage has none."""
        for name in (letter, f"{letter}_FIRST", f"{letter}_LAST", f"{letter}_FIRST_LAST"):
            if name in self.bodies:
                return self.bodies[name].seconds
        return 0.0

    def extra(self, *, first: bool) -> float:
        """Seconds that the first actions take longer than those in the middle, with the totals
        before them; or the last ones, with the update. 0 if they take less: a schedule cannot begin
        before the step."""
        seconds = 0.0
        for name, times in self.bodies.items():
            letter, _, which = name.partition("_")
            if letter in _LETTERS:
                early = which == "FIRST"
                if which and early == first:
                    seconds += times.seconds - self.of(letter)
            elif (letter == "TOTALS") == first:
                seconds += times.seconds
        return max(0.0, seconds)

    @property
    def peak(self) -> ActionMemory:
        """The action at whose peak the stage holds most."""
        return max(self.memory, key=lambda one: sum(one.during))

    @property
    def peak_bytes(self) -> int:
        return sum(self.peak.during)

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes by category at the peak."""
        return dict(zip(CATEGORIES, self.peak.during, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePrediction:
    """A pipeline: its stages, and its schedule in time."""

    stages: tuple[StagePrediction, ...]
    timing: Timing
    place_bytes: tuple[int, ...]

    @property
    def step_time_s(self) -> float:
        return self.timing.step_time


def stage_prediction(program: Program, cluster: Cluster) -> StagePrediction:
    """The prediction of one stage, whatever the others do."""
    return StagePrediction(
        bodies={name: _times(program, name, cluster) for name in program.bodies},
        memory=memory_of_actions(program),
    )


def _times(program: Program, body: str, cluster: Cluster) -> BodyTimes:
    if not program.bodies[body]:
        return BodyTimes(seconds=0.0, compute=0.0, exposed_communication=0.0)
    found = simulated(replace(program, actions=(Action(body),)), cluster)
    parts = parts_of(found)
    return BodyTimes(
        seconds=found.step_time,
        compute=parts.compute,
        exposed_communication=parts.exposed_communication,
    )


def predict_pipeline(
    pipeline: Pipeline,
    clusters: Sequence[Cluster],
    transfers: Mapping[tuple[int, int], float],
) -> PipelinePrediction:
    """The prediction of a pipeline; `transfers` are the seconds in which what one stage sends to
    another in a microbatch arrives."""
    known: dict[int, StagePrediction] = {}
    for program, cluster in zip(pipeline.programs, clusters, strict=True):
        if id(program) not in known:
            known[id(program)] = stage_prediction(program, cluster)
    stages = tuple(known[id(program)] for program in pipeline.programs)
    return timed_pipeline(stages, pipeline.schedule, transfers, flow_of(pipeline), pipeline)


def timed_pipeline(
    stages: Sequence[StagePrediction],
    schedule: Schedule,
    transfers: Mapping[tuple[int, int], float],
    flow: Flow,
    pipeline: Pipeline,
) -> PipelinePrediction:
    """The schedule of these stages in time, and the memory of every place."""
    together = any(program.squares for program in pipeline.programs)
    costs = stage_costs(stages, schedule, transfers, together=together)
    return PipelinePrediction(
        stages=tuple(stages),
        timing=timed(schedule, costs, flow),
        place_bytes=tuple(
            _place_bytes(
                [stages[s] for s in schedule.stages_at(place)],
                schedule.orders[place],
                schedule.stages_at(place),
            )
            for place in range(schedule.num_places)
        ),
    )


def stage_costs(
    stages: Sequence[StagePrediction],
    schedule: Schedule,
    transfers: Mapping[tuple[int, int], float],
    *,
    together: bool,
) -> Costs:
    """The seconds of the stages, for a schedule; `together`: gradients are clipped by the norm of
    all, so all places wait for the last before the update."""
    return Costs(
        stages=tuple(
            StageSeconds(
                forward=one.of("F"), backward=one.of("B"), input=one.of("I"), weight=one.of("W")
            )
            for one in stages
        ),
        transfers=transfers,
        overlapped=True,
        before=_of_places(schedule, [one.extra(first=True) for one in stages]),
        after=_of_places(schedule, [one.extra(first=False) for one in stages]),
        together=together,
    )


def _of_places(schedule: Schedule, seconds: Sequence[float]) -> tuple[float, ...]:
    return tuple(
        sum(seconds[stage] for stage in schedule.stages_at(place))
        for place in range(schedule.num_places)
    )


def _place_bytes(
    stages: Sequence[StagePrediction], order: Sequence[Action], numbers: Sequence[int]
) -> int:
    """The most that the stages of a place hold together, in the order of its actions."""
    return max(most for most, _ in place_memory(stages, order, numbers))


def place_memory(
    stages: Sequence[StagePrediction], order: Sequence[Action], numbers: Sequence[int]
) -> list[tuple[int, int]]:
    """The bytes that the stages of a place hold together: at the peak of each action of its order
    and at its end, and at last for what runs after all of them."""
    memory = dict(zip(numbers, (iter(one.memory) for one in stages), strict=True))
    # What runs before the first actions of the schedule is of little weight.
    held = {number: sum(one.memory[0].after) for number, one in zip(numbers, stages, strict=True)}
    out: list[tuple[int, int]] = []
    for action in order:
        most = 0
        for found in memory[action.stage]:
            others = sum(held.values()) - held[action.stage]
            most = max(most, others + sum(found.during))
            held[action.stage] = sum(found.after)
            if _runs(found.action, action):
                break
        out.append((most, sum(held.values())))
    most = sum(held.values())
    for number in numbers:
        for found in memory[number]:
            others = sum(held.values()) - held[number]
            most = max(most, others + sum(found.during))
            held[number] = sum(found.after)
    return [*out, (most, sum(held.values()))]


def _runs(action: Action, scheduled: Action) -> bool:
    """Whether an action of a program is this one of the schedule."""
    letter = action.body.partition("_")[0]
    return (letter, action.microbatch) == (scheduled.body, scheduled.microbatch)


def flow_of(pipeline: Pipeline) -> Flow:
    """Which stages send to which, in forward and in backward."""

    def pairs(phase: str) -> tuple[tuple[int, int], ...]:
        return tuple(sorted({(t.source, t.target) for t in pipeline.transfers if t.phase == phase}))

    return Flow(forward=pairs("forward"), backward=pairs("backward"))
