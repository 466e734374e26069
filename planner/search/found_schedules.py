"""`--schedule found`: the schedule of a pipeline is found for the seconds and bytes of its stages.

Spec -> PipelineCandidate. The stages are planned with a named schedule whose backward is in two
halves; what they take and keep makes the task (`schedules.find`); the pipeline is then made again
with the schedule found, and the shorter of both is taken.
"""

from __future__ import annotations

from dataclasses import replace

from cost_models.errors import BadValue
from planner.predict.stages import StagePrediction, flow_of, stage_costs
from planner.schedules.find.found import find
from planner.schedules.find.task import Task
from planner.schedules.in_flight import Kept, peaks
from planner.search.pipelines import PipelineCandidate, Pipelines, Spec
from planner.search.transfer_times import transfer_seconds

__all__ = ["with_found_schedule"]

#: The schedule with which stages are planned first, by the stages of a place.
_FIRST = {0: "zbh1", 1: "zbh1", 2: "zbv"}

#: The share of the time left, and the most seconds, that the integer program of a small task takes.
_SHARE, _SECONDS = 0.25, 10.0


def with_found_schedule(made: Pipelines, spec: Spec) -> PipelineCandidate:
    """The pipeline with the best schedule that is found. Raises as `Pipelines.candidate`."""
    if spec.chunks not in _FIRST:
        raise BadValue(
            f"schedule 'found' has 1 or 2 stages a rank, got {spec.chunks}: use 2, or 'interleaved'"
        )
    first = made.candidate(replace(spec, schedule=_FIRST[spec.chunks]))
    seconds = min(_SECONDS, _SHARE * made.budget.left)
    schedule = find(_task(made, first), seconds=seconds).timing.schedule
    own = made.candidate(replace(spec, given=schedule), first.begins)
    return min(
        (own, first), key=lambda one: (not one.fits, one.prediction.step_time_s), default=own
    )


def _task(made: Pipelines, first: PipelineCandidate) -> Task:
    """What a schedule is to be found for."""
    schedule, found = first.pipeline.schedule, first.prediction
    kept = tuple(map(_kept, found.stages))
    fixed = [
        held - most for held, most in zip(found.place_bytes, peaks(schedule, kept), strict=True)
    ]
    return Task(
        places=schedule.places,
        microbatches=schedule.microbatches,
        costs=stage_costs(
            found.stages,
            schedule,
            transfer_seconds(first.pipeline, made.cluster),
            together=any(program.squares for program in first.pipeline.programs),
        ),
        kept=kept,
        limits=tuple(made.capacity - nbytes for nbytes in fixed),
        flow=flow_of(first.pipeline),
    )


def _kept(stage: StagePrediction) -> Kept:
    """What a microbatch leaves after its forward, and after the first half of its backward."""
    change = {"F": 0.0, "I": 0.0}
    for before, one in zip(stage.memory, stage.memory[1:], strict=False):
        letter = one.action.body.partition("_")[0]
        if letter in change:
            change[letter] = float(sum(one.after) - sum(before.after))
    forward = max(0.0, change["F"])
    return Kept(after_forward=forward, after_input=max(0.0, forward + change["I"]))
