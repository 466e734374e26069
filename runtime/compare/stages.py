"""The comparison of a plan with pipeline stages: op by op as without, and body by body of each
stage.

Every body is simulated once, alone, as in its prediction; measured are all its runs. The time for
which stages wait for each other, bubbles and messages, has its own row.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from cost_models.machine import Cluster
from cost_models.timeline import Event, Timeline
from planner.plans.pipeline_replay import clusters_of
from planner.plans.plan import Plan
from planner.predict.periods import simulated
from planner.predict.stages import PipelinePrediction, predict_pipeline
from planner.predict.tasks import prefix_of
from planner.program.actions import Action
from planner.program.program import Program
from planner.search.transfer_times import transfer_seconds
from planner.stages.pipeline import Pipeline
from runtime.compare.comparison import Comparison, KindRow, Ran
from runtime.compare.join import BETWEEN, WAITING, covered, grouped, join_events
from runtime.recorder import PASSING

__all__ = ["STAGES", "compare_pipelines"]

#: The row of the table for the time in which a stage waits for others.
STAGES = "waiting for stages"


def compare_pipelines(plan: Plan, cluster: Cluster, pipeline: Pipeline, ran: Ran) -> Comparison:
    """The comparison of the predicted step of a pipeline and the measured ones."""
    clusters = clusters_of(plan, cluster)
    prediction = predict_pipeline(pipeline, clusters, transfer_seconds(pipeline, cluster))
    found, waiting = [], 0.0
    for stage, (program, devices) in enumerate(zip(pipeline.programs, clusters, strict=True)):
        recorded = [list(_of_stage(step, pipeline, stage)) for step in ran.timelines]
        ahead = _simulated(program, devices)
        joined, waits = join_events(ahead, recorded, uneven=program.rank is not None)
        found.append(joined.assign(stage=stage))
        waiting += waits / pipeline.schedule.num_places
    # Per device: a stage is on the devices of one place.
    events = pd.concat(found, ignore_index=True)
    per_device = events.assign(
        predicted_s=events["predicted_s"] / pipeline.schedule.num_places,
        measured_s=events["measured_s"] / pipeline.schedule.num_places,
    )
    step = statistics.median(statistics.mean(t.step_time for t in step) for step in ran.timelines)
    stages = _waited(ran)
    between = max(0.0, step - covered(ran.timelines))
    extra = [
        KindRow(kind=name, count=0, predicted_s=0.0, measured_s=seconds)
        for name, seconds in ((WAITING, waiting), (STAGES, stages), (BETWEEN, between))
    ]
    talks = per_device[per_device["stream"] == "communication"]
    return Comparison(
        model=plan.ask.model,
        mesh=str(plan.mesh),
        num_ranks=plan.mesh.num_devices,
        hardware=cluster.name,
        predicted_step_time_s=prediction.step_time_s,
        measured_step_time_s=statistics.median(ran.step_times_s),
        predicted_peak_memory_bytes=max(prediction.place_bytes),
        measured_peak_memory_bytes=ran.peak_memory_bytes,
        recorded_step_time_s=step,
        step_times_s=ran.step_times_s,
        events=per_device,
        by_kind=(*grouped(per_device, "kind"), *(row for row in extra if row.measured_s > 0)),
        by_phase=grouped(per_device, "phase"),
        by_collective=grouped(talks, "kind"),
        by_body=tuple(_by_body(pipeline, prediction, ran)),
    )


def _of_stage(timelines: Sequence[Timeline], pipeline: Pipeline, stage: int) -> Iterator[Timeline]:
    """The recorded step of a stage's ranks: its own instructions."""
    first = pipeline.first_rank(stage)
    for timeline in timelines[first : first + pipeline.programs[stage].mesh.num_devices]:
        own = (e for e in timeline.events if e.stage == stage and e.kind not in PASSING)
        yield replace(timeline, events=tuple(own))


def _simulated(program: Program, cluster: Cluster) -> Timeline:
    """The events of all actions of a stage, each at the time in its body."""
    bodies = {name: _alone(program, name, cluster) for name in program.bodies}
    return Timeline(
        events=tuple(
            replace(event, microbatch=action.microbatch)
            for action in program.actions
            for event in bodies[action.body]
        )
    )


def _alone(program: Program, body: str, cluster: Cluster) -> tuple[Event, ...]:
    """The events of one body, by the ids of its instructions."""
    if not program.bodies[body]:
        return ()
    alone = replace(program, actions=(Action(body),))
    prefix = prefix_of(alone.actions[0], alone)
    events = simulated(alone, cluster).timeline.events
    return tuple(replace(event, id=event.id.removeprefix(prefix)) for event in events)


def _waited(ran: Ran) -> float:
    """Seconds per step and device between stages: what is received, and sent."""
    return statistics.median(
        statistics.mean(
            sum(e.duration for e in timeline.events if e.kind in PASSING) for timeline in step
        )
        for step in ran.timelines
    )


def _by_body(pipeline: Pipeline, prediction: PipelinePrediction, ran: Ran) -> Iterator[KindRow]:
    """For each stage, and each letter of its bodies, the seconds of all actions in a step."""
    for stage, program in enumerate(pipeline.programs):
        times = prediction.stages[stage].bodies
        predicted: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        for action in program.actions:
            if not program.bodies[action.body]:
                continue  # a first stage has nothing to send in backward
            predicted[_letter(action)] += times[action.body].seconds
            counts[_letter(action)] += 1
        measured = _measured(
            program, [list(_of_stage(step, pipeline, stage)) for step in ran.timelines]
        )
        for letter, seconds in predicted.items():
            yield KindRow(
                kind=f"stage {stage} {letter}",
                count=counts[letter],
                predicted_s=seconds,
                measured_s=measured.get(letter, 0.0),
            )


def _measured(program: Program, recorded: Sequence[Sequence[Timeline]]) -> Mapping[str, float]:
    """Seconds per step in the actions of each letter, from the first instruction of an action to the
    end of its last: the median over steps of the mean over ranks."""
    action_of = {
        (action.microbatch, one.id): action
        for action in program.actions
        for one in program.bodies[action.body]
    }
    found: dict[str, list[float]] = defaultdict(list)
    for step in recorded:
        total: dict[str, float] = defaultdict(float)
        for timeline in step:
            spans: dict[Action, tuple[float, float]] = {}
            for event in timeline.events:
                action = action_of[event.microbatch, event.id]
                start, end = spans.get(action, (event.start, event.end))
                spans[action] = min(start, event.start), max(end, event.end)
            for action, (start, end) in spans.items():
                total[_letter(action)] += (end - start) / len(step)
        for letter, seconds in total.items():
            found[letter].append(seconds)
    return {letter: statistics.median(seconds) for letter, seconds in found.items()}


def _letter(action: Action) -> str:
    return action.body.partition("_")[0]
