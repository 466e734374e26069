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
from planner.plans.summary import ideal_seconds
from planner.plans.words import axis_names, describe
from planner.schedules.csv_text import show_csv
from planner.search.pipelines import PipelineCandidate, in_flight
from planner.state import hash_seed
from planner.strategy.strategies import KEPT
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
    """The mesh of all devices: the places, and the axes of each."""
    one = _named(best)
    return Mesh(("pp", *one.names), (best.spec.places, *one.sizes))


def _named(best: PipelineCandidate) -> Mesh:
    """The mesh of every stage, its axes named by what they split in the first one."""
    first = best.stages[0]
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
        mesh=_named(best),
        options=tuple(
            chosen[members[0]].options if members[0] in chosen else None
            for members in ties.nodes_of
        ),
        parameters=tuple(
            one.choices.parameters[members[0]].options for members in ties.parameters_of
        ),
        hubs=tuple((value, phase, layout) for (value, phase), layout in one.choices.hubs.items()),
        bucket_bytes=one.choices.bucket,
        recast=one.choices.recast,
        modes={node: s.mode for node, s in chosen.items() if s.mode != KEPT},
    )


def _summary(
    best: PipelineCandidate, cluster: Cluster, workload: Workload, mesh: Mesh, elapsed: float
) -> dict[str, Any]:
    prediction, ask = best.prediction, best.ask
    step, batch = prediction.step_time_s, int(workload.batch[0].shape[0])
    models = [stage.model for stage in best.stages]
    busiest = _busiest(best)
    copies = sum(m.graph.values[v].numel for m in models for v in m.graph.copies)
    ideal = sum(ideal_seconds(model, cluster) for model in models)
    memory = _memory(best)
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
        "compute_time_s": busiest["compute_time_s"],
        "exposed_communication_time_s": busiest["exposed_communication_time_s"],
        "idle_time_s": max(0.0, step - sum(busiest.values())),
        "samples_per_s": batch / step,
        "tokens_per_s": batch * workload.tokens_per_sample / step,
        "mfu": ideal / (step * cluster.num_devices),
        "memory_bytes": memory,
        "memory_capacity_bytes": cluster.device.usable_memory,
        "memory_allowed_bytes": ask.allowed_memory(cluster.device),
        "fits": memory["total"] <= ask.allowed_memory(cluster.device),
        "replicated_ops": [],
        "discovered_ops": [],
        "ops_without_rule": [],
        "groups": [row for stage in range(len(models)) for row in _groups(best, stage, workload)],
        "axes": [
            asdict(axis) | {"links": list(axis.links)}
            for axis in axis_links(cluster, mesh.names, mesh.sizes)
        ],
        "stages": [_of_stage(best, stage) for stage in range(len(models))],
        "bubble": [1 - busy / step for busy in prediction.timing.busy],
        "planning_time_s": elapsed,
    }


def _groups(best: PipelineCandidate, stage: int, workload: Workload) -> list[dict[str, Any]]:
    """What the axes split in a stage, a row for each group of like modules."""
    one = best.stages[stage]
    return [
        asdict(row)
        | {"ops": [f"stage {stage}", *row.ops], "parameters": [f"stage {stage}", *row.parameters]}
        for row in describe(one.model, workload, one.mesh, one.choices, one.costing)
    ]


def _busiest(best: PipelineCandidate) -> dict[str, float]:
    """Seconds of compute and of exposed communication of the place that is idle least."""
    schedule, found = best.pipeline.schedule, []
    for place in range(schedule.num_places):
        parts = {"compute_time_s": 0.0, "exposed_communication_time_s": 0.0}
        for stage in schedule.stages_at(place):
            times = best.prediction.stages[stage].bodies
            for action in best.pipeline.programs[stage].actions:
                parts["compute_time_s"] += times[action.body].compute
                parts["exposed_communication_time_s"] += times[action.body].exposed_communication
        found.append(parts)
    return max(found, key=lambda parts: sum(parts.values()))


def _memory(best: PipelineCandidate) -> dict[str, int]:
    """Bytes by category of the place that holds most; those of several stages at their own peaks,
    activations less what is not held at one time."""
    schedule = best.pipeline.schedule
    held = best.prediction.place_bytes
    place = max(range(schedule.num_places), key=held.__getitem__)
    parts: dict[str, int] = {}
    for stage in schedule.stages_at(place):
        for name, nbytes in best.prediction.stages[stage].memory_bytes.items():
            parts[name] = parts.get(name, 0) + nbytes
    less = sum(parts.values()) - held[place]
    for name in ("activations", "temporaries", "gathered", "gradients", "inputs"):
        taken = min(less, parts[name])
        parts[name], less = parts[name] - taken, less - taken
    return {**parts, "total": sum(parts.values())}


def _of_stage(best: PipelineCandidate, stage: int) -> dict[str, Any]:
    """A stage's figures for the report."""
    one, found = best.stages[stage], best.prediction.stages[stage]
    schedule, units = best.pipeline.schedule, best.model.units
    end = best.begins[stage + 1] if stage + 1 < len(best.begins) else len(units)
    blocks = list(dict.fromkeys(u.block for u in units[best.begins[stage] : end] if u.block))
    place = schedule.places[stage]
    first = best.pipeline.firsts[place]
    return {
        "stage": stage,
        "place": place,
        "devices": [first, first + one.mesh.num_devices - 1],
        "mesh": str(_named(best)),
        "layers": blocks,
        "begins_at": best.model.at(best.begins[stage]),
        "forward_s": found.of("F"),
        "backward_s": found.of("B"),
        "input_s": found.of("I"),
        "weight_s": found.of("W"),
        "before_s": found.extra(first=True),
        "after_s": found.extra(first=False),
        "memory_bytes": {**found.memory_bytes, "total": found.peak_bytes},
        "in_flight": in_flight(best.pipeline.programs[stage].actions),
        "recomputed_ops": sum(s.mode == "again" for s in one.choices.strategies.values()),
    }
