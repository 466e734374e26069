"""The `Plan` of a pipeline: the choices of every stage, the schedule, the prediction."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from cost_models.axis_links import axis_links
from cost_models.cluster_text import cluster_text
from cost_models.machine import Cluster
from planner.graph.layout import Mesh
from planner.plans.plan import (
    Alternative,
    Hardware,
    PipelinePlan,
    Plan,
    PlanStage,
    SolverRecord,
    Training,
)
from planner.plans.plan_choices import in_file_order
from planner.plans.recomputed import recomputed
from planner.plans.summary import ideal_seconds
from planner.plans.words import axis_names, describe, ops_by_source, replicated_ops
from planner.predict.places import prediction_of_places, stage_figures
from planner.schedules.csv_text import show_csv
from planner.search.pipelines import PipelineCandidate
from planner.stages import Unit
from planner.state import hash_seed
from planner.strategy.strategies import KEPT, SECOND
from planner.workload.workload import Workload, unused

__all__ = ["FoundPipeline", "plan_of_pipeline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPipeline:
    """A plan with the candidate that it was made from."""

    plan: Plan
    candidate: PipelineCandidate
    workload: Workload


def plan_of_pipeline(
    best: PipelineCandidate,
    cluster: Cluster,
    workload: Workload,
    proof: SolverRecord,
    alternatives: tuple[Alternative, ...],
    began: float,
) -> FoundPipeline:
    """The plan of a candidate; `began` is when planning did, by `time.perf_counter`."""
    used = cluster.slice(0, best.spec.num_devices)
    mesh = whole_mesh(best)
    plan = Plan(
        ask=best.ask,
        mesh=mesh,
        graph_hash=best.model.whole.digest(),
        hash_seed=hash_seed.chosen(),
        training=Training(
            optimizer=workload.optimizer,
            clip_norm=workload.clip_norm,
            clip_epsilon=workload.clip_epsilon,
        ),
        hardware=Hardware(
            name=cluster.name,
            num_devices=used.num_devices,
            num_nodes=used.num_nodes,
            definition=cluster_text(cluster, provenance={}, sources={}),
        ),
        options=(),
        parameters=(),
        hubs=(),
        bucket_bytes=best.stages[0].choices.bucket,
        recast=False,
        solver=proof,
        pipeline=PipelinePlan(
            schedule=best.pipeline.schedule.name,
            orders=show_csv(best.pipeline.schedule),
            stages=tuple(_stage(best, stage) for stage in range(len(best.stages))),
        ),
        alternatives=alternatives,
        summary=_summary(best, used, workload, mesh, time.perf_counter() - began),
    )
    return FoundPipeline(plan=plan, candidate=best, workload=workload)


def whole_mesh(best: PipelineCandidate) -> Mesh:
    """The mesh of all devices: the places, and the axes of each; one axis if these are unlike."""
    if not best.spec.is_uniform:
        return Mesh(("devices",), (best.spec.num_devices,))
    one = _named(best, 0)
    return Mesh(("pp", *one.names), (best.spec.places, *one.sizes))


def _named(best: PipelineCandidate, stage: int) -> Mesh:
    """The mesh of a stage, its axes named by what they split in the first one of such a mesh."""
    sizes = best.stages[stage].mesh.sizes
    first = next(one for one in best.stages if one.mesh.sizes == sizes)
    if set(first.mesh.names) & {"a", "b", "c"}:
        names = axis_names(first.model, first.choices, first.costing, first.mesh.sizes)
        return Mesh(names, first.mesh.sizes)
    return first.mesh


def _stage(best: PipelineCandidate, stage: int) -> PlanStage:
    one, at = best.stages[stage], best.begins[stage]
    chosen, ties = one.choices.strategies, one.model.ties
    return PlanStage(
        begins=at,
        at=best.model.at(at),
        mesh=_named(best, stage),
        options=tuple(
            chosen[members[0]].options if members[0] in chosen else None
            for members in ties.nodes_of
        ),
        parameters=tuple(
            one.choices.parameters[members[0]].options for members in ties.parameters_of
        ),
        hubs=in_file_order(one.choices.hubs),
        bucket_bytes=one.choices.bucket,
        recast=one.choices.recast,
        modes={node: s.mode for node, s in chosen.items() if s.mode != KEPT},
    )


def _summary(
    best: PipelineCandidate, cluster: Cluster, workload: Workload, mesh: Mesh, elapsed: float
) -> dict[str, Any]:
    ask, timing = best.ask, best.prediction.timing
    prediction = prediction_of_places(best.pipeline, best.prediction)
    step, batch = prediction.step_time_s, int(workload.batch[0].shape[0])
    models = [stage.model for stage in best.stages]
    copies = sum(m.graph.values[v].numel for m in models for v in m.graph.copies)
    ideal = sum(ideal_seconds(model, cluster) for model in models)
    total = prediction.total_memory_bytes
    return {
        "model": workload.name,
        "options": dict(workload.options),
        "optimizer": workload.optimizer,
        "dtype": workload.compute or ask.dtype.removeprefix("torch."),
        "num_parameters": sum(model.graph.num_parameters for model in models) - copies,
        **({"microbatches": ask.microbatches} if ask.microbatches > 1 else {}),
        "take_no_part": list(
            unused(workload.module, {p.name for m in models for p in m.graph.parameters})
        ),
        "step_time_s": step,
        "compute_time_s": prediction.compute_time_s,
        "exposed_communication_time_s": prediction.exposed_communication_time_s,
        "idle_time_s": prediction.idle_time_s,
        "samples_per_s": batch / step,
        "tokens_per_s": batch * workload.tokens_per_sample / step,
        "mfu": ideal / (step * cluster.num_devices),
        "memory_bytes": {**prediction.memory_bytes, "total": total},
        "memory_capacity_bytes": cluster.device.usable_memory,
        "memory_allowed_bytes": ask.allowed_memory(cluster.device),
        "fits": total <= ask.allowed_memory(cluster.device),
        "replicated_ops": _replicated(best),
        "discovered_ops": _by_source(best, "discovered"),
        "ops_without_rule": _by_source(best, "replicated"),
        "groups": [row for stage in range(len(models)) for row in _groups(best, stage, workload)],
        "axes": [
            asdict(axis) | {"links": list(axis.links)}
            for axis in axis_links(cluster, mesh.names, mesh.sizes)
        ],
        "stages": [_of_stage(best, stage) for stage in range(len(models))],
        "bubble": [max(0.0, waits / step) for waits in timing.bubbles],
        "planning_time_s": elapsed,
    }


def _replicated(best: PipelineCandidate) -> list[str]:
    """The ops that take time and that all devices of some stage run whole."""
    names: dict[str, None] = {}
    for one in best.stages:
        if one.mesh.num_devices == 1:
            continue
        names |= dict.fromkeys(replicated_ops(one.model, one.choices, one.costing, one.mesh))
    return list(names)


def _by_source(best: PipelineCandidate, source: str) -> list[str]:
    """The ops of all stages whose rules are of this source."""
    models = (stage.model for stage in best.stages)
    return list(dict.fromkeys(op for model in models for op in ops_by_source(model, source)))


def _groups(best: PipelineCandidate, stage: int, workload: Workload) -> list[dict[str, Any]]:
    """What the axes split in a stage, a row for each group of like modules."""
    one = best.stages[stage]
    return [
        asdict(row)
        | {"ops": [f"stage {stage}", *row.ops], "parameters": [f"stage {stage}", *row.parameters]}
        for row in describe(one.model, workload, one.mesh, one.choices, one.costing)
    ]


def _of_stage(best: PipelineCandidate, stage: int) -> dict[str, Any]:
    """A stage's figures for the report."""
    one = best.stages[stage]
    again = recomputed(best.pipeline.programs[stage], one.model, one.choices, one.costing)
    return {
        **stage_figures(best.pipeline, best.prediction, stage),
        "mesh": str(_named(best, stage)),
        "layers": _layers(best, stage),
        "begins_at": best.model.at(best.begins[stage]),
        "recomputed_ops": sum(s.mode in SECOND for s in one.choices.strategies.values()),
        **({"recomputed": again} if again else {}),
    }


def _layers(best: PipelineCandidate, stage: int) -> list[str]:
    """The layers of a stage, and its modules outside of layers, in order; `(part)` of those that
    other stages have parts of."""
    units, begin = best.model.units, best.begins[stage]
    end = best.begins[stage + 1] if stage + 1 < len(best.begins) else len(units)
    names = [_names(best, unit) for unit in units]
    others = {name for some in (*names[:begin], *names[end:]) for name in some}
    own = dict.fromkeys(name for some in names[begin:end] for name in some)
    layers = [f"{name} (part)" if name in others else name for name in own if name]
    return layers or ["(top level)"]


def _names(best: PipelineCandidate, unit: Unit) -> list[str]:
    """The layer of a unit, or the modules of its ops."""
    return [unit.block] if unit.block else [best.model.graph.nodes[n].path for n in unit.nodes]
