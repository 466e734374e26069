"""A plan's pipeline, made again from its file: every rank cuts the traced model as the plan says and
lowers the choices of its own stages.

Plan -> Pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cost_models.machine import Cluster
from planner.lowering.pipeline import ChosenStage, first_ranks, lower_pipeline
from planner.plans.plan import PipelinePlan, Plan
from planner.plans.replay import choices_of, costing_of, traced_of
from planner.plans.stage_models import StageModels, check_begins, cuttable, stage_models
from planner.schedules.csv_text import read_csv
from planner.schedules.schedule import Schedule
from planner.stages.pipeline import Pipeline
from planner.trace.traced import Traced

__all__ = ["clusters_of", "models_of", "pipeline_of", "schedule_of", "stage_plans"]


def schedule_of(pipeline: PipelinePlan) -> Schedule:
    """The schedule of a pipeline."""
    return read_csv(pipeline.orders, pipeline.schedule)


def stage_plans(plan: Plan) -> Iterator[Plan]:
    """The plan of every stage: as if its graph were the whole one, on its own devices."""
    assert plan.pipeline is not None
    for stage in plan.pipeline.stages:
        yield replace(
            plan,
            mesh=stage.mesh,
            options=stage.options,
            parameters=stage.parameters,
            hubs=stage.hubs,
            bucket_bytes=stage.bucket_bytes,
            recast=stage.recast,
            modes=stage.modes,
            pipeline=None,
        )


def clusters_of(plan: Plan, cluster: Cluster | None = None) -> list[Cluster]:
    """The devices of every stage, as a cluster: of the plan's hardware or another."""
    assert plan.pipeline is not None
    whole = cluster or plan.hardware.cluster()
    schedule = schedule_of(plan.pipeline)
    sizes = [stage.mesh.num_devices for stage in plan.pipeline.stages]
    firsts = first_ranks(sizes, schedule)
    return [whole.slice(firsts[schedule.places[stage]], size) for stage, size in enumerate(sizes)]


def models_of(plan: Plan, traced: Traced) -> StageModels:
    """The models of the stages of a plan, cut from its traced model. Raises BadPlan if it has not
    the units at which they begin."""
    assert plan.pipeline is not None
    whole = cuttable(traced, plan.ask)
    for stage in plan.pipeline.stages:
        check_begins(whole, stage.begins, stage.at)
    return stage_models(whole, [stage.begins for stage in plan.pipeline.stages])


def pipeline_of(
    plan: Plan, cluster: Cluster | None = None, *, rank: int = 0, seed: int = 0
) -> Pipeline:
    """The pipeline as `rank` of the plan runs it, timed on the plan's hardware or, if given, on
    another cluster. Raises BadPlan if the model is not the one that the plan was made for."""
    assert plan.pipeline is not None
    stages = models_of(plan, traced_of(plan, seed))
    chosen = []
    for model, own, devices in zip(
        stages.models, stage_plans(plan), clusters_of(plan, cluster), strict=True
    ):
        chosen.append(
            ChosenStage(
                model=model,
                mesh=own.mesh,
                choices=choices_of(own, model),
                costing=costing_of(own, model, devices),
            )
        )
    return lower_pipeline(chosen, stages.crossings, schedule_of(plan.pipeline), rank=rank)
