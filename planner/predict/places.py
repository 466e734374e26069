"""The figures of a pipeline, place by place and stage by stage: what the busiest does with its time,
what the fullest holds, memory and actions over time.

Pipeline, PipelinePrediction -> Prediction, Timeline, records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cost_models.timeline import Event, MemorySample, Timeline
from planner.predict.predict import Prediction
from planner.predict.stages import PipelinePrediction, place_memory
from planner.program.actions import Action
from planner.schedules.schedule import BACKWARD, FORWARD, INPUT, WEIGHT
from planner.stages.pipeline import Pipeline

__all__ = [
    "in_flight",
    "memory_of_places",
    "prediction_of_places",
    "stage_figures",
    "timeline_of_places",
]

_KINDS = {
    FORWARD: ("forward", "forward"),
    BACKWARD: ("backward", "backward"),
    INPUT: ("input_gradients", "backward"),
    WEIGHT: ("weight_gradients", "backward"),
}


def prediction_of_places(pipeline: Pipeline, found: PipelinePrediction) -> Prediction:
    """The prediction of a step: the time of the place that waits least, in parts, and the memory of
    the one that holds most."""
    compute, exposed = _busiest(pipeline, found)
    return Prediction(
        step_time_s=found.step_time_s,
        compute_time_s=compute,
        exposed_communication_time_s=exposed,
        idle_time_s=max(0.0, found.step_time_s - compute - exposed),
        memory_bytes=_fullest(pipeline, found),
    )


def _busiest(pipeline: Pipeline, found: PipelinePrediction) -> tuple[float, float]:
    """Seconds of compute and of exposed communication of the place that waits least."""
    schedule, sums = pipeline.schedule, []
    for place in range(schedule.num_places):
        compute = exposed = 0.0
        for stage in schedule.stages_at(place):
            times = found.stages[stage].bodies
            for action in pipeline.programs[stage].actions:
                compute += times[action.body].compute
                exposed += times[action.body].exposed_communication
        sums.append((compute, exposed))
    return max(sums, key=sum)


def _fullest(pipeline: Pipeline, found: PipelinePrediction) -> dict[str, int]:
    """Bytes by category of the place that holds most; those of several stages at their own peaks,
    activations less what is not held at one time."""
    schedule, held = pipeline.schedule, found.place_bytes
    place = max(range(schedule.num_places), key=held.__getitem__)
    parts: dict[str, int] = {}
    for stage in schedule.stages_at(place):
        for name, nbytes in found.stages[stage].memory_bytes.items():
            parts[name] = parts.get(name, 0) + nbytes
    less = sum(parts.values()) - held[place]
    for name in ("activations", "temporaries", "gathered", "gradients", "inputs"):
        taken = min(less, parts[name])
        parts[name], less = parts[name] - taken, less - taken
    return parts


def stage_figures(pipeline: Pipeline, found: PipelinePrediction, stage: int) -> dict[str, Any]:
    """A stage's figures as plain data: its devices, the seconds of its bodies, what it holds at its
    peak. `before_s` and `after_s` are the seconds of what runs once a step."""
    one, place = found.stages[stage], pipeline.schedule.places[stage]
    first = pipeline.firsts[place]
    mesh = pipeline.programs[stage].mesh
    return {
        "stage": stage,
        "place": place,
        "devices": [first, first + mesh.num_devices - 1],
        "forward_s": one.of(FORWARD),
        "backward_s": one.of(BACKWARD),
        "input_s": one.of(INPUT),
        "weight_s": one.of(WEIGHT),
        "before_s": one.extra(first=True),
        "after_s": one.extra(first=False),
        "memory_bytes": {**one.memory_bytes, "total": one.peak_bytes},
        "in_flight": in_flight(pipeline.programs[stage].actions),
    }


def in_flight(actions: Sequence[Action]) -> int:
    """The most microbatches whose forward a stage has run and whose backward it has not ended."""
    now, most = 0, 0
    for action in actions:
        now += {FORWARD: 1, BACKWARD: -1, WEIGHT: -1}.get(action.body.partition("_")[0], 0)
        most = max(most, now)
    return most


def memory_of_places(
    pipeline: Pipeline, found: PipelinePrediction
) -> tuple[tuple[tuple[float, int], ...], ...]:
    """For every place the (seconds, bytes per device) from which on it holds so much: the peak of
    an action from its start to its end. Before the step it holds what it does after it."""
    schedule, timing = pipeline.schedule, found.timing
    out = []
    for place in range(schedule.num_places):
        numbers = schedule.stages_at(place)
        rows = place_memory([found.stages[s] for s in numbers], schedule.orders[place], numbers)
        starts = (*timing.starts[place], timing.after_starts[place])
        ends = (*timing.ends[place], timing.after_starts[place] + timing.after[place])
        samples: list[tuple[float, int]] = [(0.0, rows[-1][1])]
        for start, end, (most, after) in zip(starts, ends, rows, strict=True):
            if samples[-1][0] == start:  # held for no time
                samples.pop()
            samples += [(start, most), (end, after)]
        out.append(tuple(samples))
    return tuple(out)


def timeline_of_places(pipeline: Pipeline, found: PipelinePrediction) -> Timeline:
    """The step as a timeline: an event for each action, of the first device of its place, named as
    in the schedule's file; and the memory of each place."""
    memory = memory_of_places(pipeline, found)
    return Timeline(
        events=tuple(sorted(_events(pipeline, found), key=lambda event: event.start)),
        memory=tuple(
            MemorySample(device=pipeline.firsts[place], time=time, nbytes=nbytes)
            for place, samples in enumerate(memory)
            for time, nbytes in samples
        ),
        step_time=found.step_time_s,
        metadata={"schedule": pipeline.schedule.name, "bubble": found.timing.bubble_share},
    )


def _events(pipeline: Pipeline, found: PipelinePrediction) -> Iterator[Event]:
    timing = found.timing
    for place, order in enumerate(pipeline.schedule.orders):
        device = pipeline.firsts[place]

        def event(name: str, kind: str, phase: str, start: float, end: float, at: int) -> Event:
            return Event(
                id=name, kind=kind, phase=phase, device=device, stream="compute",  # noqa: B023
                start=start, end=end, path=name, microbatch=at,
            )  # fmt: skip

        if timing.before[place]:
            yield event("before", "once", "forward", 0.0, timing.before[place], 0)
        spans = zip(order, timing.starts[place], timing.ends[place], strict=True)
        for action, start, end in spans:
            kind, phase = _KINDS[action.body]
            yield event(str(action), kind, phase, start, end, action.microbatch)
        if timing.after[place]:
            start = timing.after_starts[place]
            yield event("after", "once", "update", start, start + timing.after[place], 0)
