"""A pipeline as a person typed it: checked, made and simulated as it stands; nothing is searched but
how the ops of each stage are split, where pins leave that open.

Ask, cluster, spec -> FoundPipeline.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cost_models.errors import DoesNotFit
from cost_models.machine import Cluster
from cost_models.units import format_bytes
from planner.plans.plan import SolverRecord
from planner.plans.summary import ideal_seconds
from planner.search.budget import Budget
from planner.search.pipeline_planned import FoundPipeline, plan_of_pipeline
from planner.search.pipelines import PipelineCandidate, Pipelines, Spec
from planner.strategy.pinned import check_pins
from planner.strategy.pins import Pin
from planner.trace.trace import trace
from planner.workload.ask import Ask, build

__all__ = ["typed_pipeline", "work_bound"]


def typed_pipeline(
    ask: Ask,
    cluster: Cluster,
    spec: Spec,
    pins: tuple[Pin, ...] = (),
    *,
    budget: Budget | None = None,
    progress: Callable[[str, float], None] = lambda what, done: None,
) -> FoundPipeline:
    """The plan of a pipeline. Raises NoPlan, BadValue, CannotCut and CannotSplit for what cannot
    be, DoesNotFit with the stage that holds too much."""
    began = time.perf_counter()
    progress("tracing the model", 0.0)
    traced = trace(lambda: build(ask), ask.model)
    made = Pipelines(ask, cluster, pins, budget or Budget.unlimited(), traced)
    progress("planning the stages", 0.3)
    best = made.candidate(spec)
    for stage in best.stages:
        check_pins(stage.model, [stage.mesh], pins)
    if not best.fits:
        raise DoesNotFit(_too_much(best))
    bound = work_bound(best, cluster)
    step = best.prediction.step_time_s
    proof = SolverRecord(
        bound=bound,
        gap=(step - bound) / step,
        num_meshes=1,
        time_s=0.0,
    )
    progress("done", 1.0)
    return plan_of_pipeline(best, cluster, traced.workload, proof, (), began)


def work_bound(best: PipelineCandidate, cluster: Cluster) -> float:
    """Seconds that no plan of the model on these devices is below: all its products at their peak,
    evenly on all devices."""
    ideal = sum(ideal_seconds(stage.model, cluster) for stage in best.stages)
    return ideal / best.spec.num_devices


def _too_much(best: PipelineCandidate) -> str:
    held = best.prediction.place_bytes
    place = max(range(len(held)), key=held.__getitem__)
    stages = ", ".join(map(str, best.pipeline.schedule.stages_at(place)))
    return (
        f"stage {stages} needs {format_bytes(held[place])} per device, "
        f"{format_bytes(held[place] - best.capacity)} more than the {format_bytes(best.capacity)} "
        "allowed: use more microbatches, more stages or --recompute full"
    )
