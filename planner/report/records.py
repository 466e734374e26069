"""The objects that `--json` prints: one per verb, SI units, stable keys. docs/json.md lists them; a
test checks that the two agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cost_models.breakdown import breakdown
from planner.predict.places import prediction_of_places, stage_figures
from planner.predict.predict import Prediction

if TYPE_CHECKING:
    from cost_models.machine import Cluster
    from cost_models.timeline import Timeline
    from planner.models import ModelSpec, Preset
    from planner.plans.plan import Plan
    from planner.predict.stages import PipelinePrediction
    from planner.stages.pipeline import Pipeline
    from planner.workload.ask import Ask

__all__ = [
    "compare_record",
    "models_record",
    "plan_record",
    "run_record",
    "simulate_pipeline_record",
    "simulate_record",
]

_STEP = ("step_time_s", "compute_time_s", "exposed_communication_time_s", "idle_time_s")
_RATES = ("samples_per_s", "tokens_per_s", "mfu")
_FILES = ("plan", "report", "timeline", "schedule")
_MEMORY = ("memory_bytes", "memory_capacity_bytes", "memory_allowed_bytes", "fits")


def plan_record(plan: Plan, files: Mapping[str, str]) -> dict[str, Any]:
    """The object of `plan` and of `plan report`."""
    summary = plan.summary
    return {
        "model": plan.ask.model,
        "hardware": plan.hardware.name,
        "num_devices": plan.hardware.num_devices,
        "mesh": dict(zip(plan.mesh.names, plan.mesh.sizes, strict=True)),
        "axes": summary.get("axes", []),
        **{key: summary[key] for key in (*_STEP, *_RATES, *_MEMORY)},
        "shared_memory_bytes": summary.get("shared_memory_bytes", 0),
        "microbatches": plan.ask.microbatches,
        "per_microbatch": list(plan.ask.per_microbatch),
        "only_one_microbatch": summary.get("only_one_microbatch"),
        "recomputed": summary.get("recomputed"),
        "checkpoints": summary.get("checkpoints", []),
        "pipeline": _pipeline(plan),
        "standard_name": summary.get("standard_name"),
        "alternatives": [asdict(row) for row in plan.alternatives],
        "solver": asdict(plan.solver),
        "bound_of_fitting": summary.get("bound_of_fitting", False),
        "replicated_ops": list(summary["replicated_ops"]),
        "constants": list(summary.get("constants", [])),
        "take_no_part": list(summary.get("take_no_part", [])),
        "padding": summary.get("padding"),
        "extrapolated_from": summary.get("extrapolated_from", []),
        "left_out": summary.get("left_out", []),
        "late": summary.get("late", []),
        "time_limit_s": summary.get("time_limit_s"),
        "planning_time_s": summary["planning_time_s"],
        "files": {key: files[key] for key in _FILES if key in files},
    }


def _pipeline(plan: Plan) -> dict[str, Any] | None:
    """The stages of a pipeline; None for a plan of one stage."""
    if plan.pipeline is None:
        return None
    return {
        "schedule": plan.pipeline.schedule,
        "stages": [{"recomputed": None, **row} for row in plan.summary["stages"]],
        "bubble": list(plan.summary["bubble"]),
    }


def run_record(result: Mapping[str, Any]) -> dict[str, Any]:
    """The object of `plan run`, from the result of a run."""
    verify = result["verify"]
    names = (
        "loss_error",
        "gradient_error",
        "parameter_error",
        "buffer_error",
        "num_left_out",
        "num_elements",
        "limit",
        "worst",
    )
    errors = verify and {name: verify[name] for name in names}
    return {**result, "verify": errors}


def compare_record(result: Mapping[str, Any]) -> dict[str, Any]:
    """The object of `plan compare`, from the result of a comparison."""
    steps = ("predicted_step_time_s", "measured_step_time_s", "error")
    peaks = ("predicted_peak_memory_bytes", "measured_peak_memory_bytes")
    kinds = [
        {key: row[key] for key in ("kind", "predicted_s", "measured_s", "error")}
        for row in result["by_kind"]
    ]
    bodies = {"by_body": result["by_body"]} if "by_body" in result else {}
    return {**{key: result[key] for key in (*steps, *peaks)}, "by_kind": kinds, **bodies}


def simulate_record(
    timeline: Timeline, memory_bytes: Mapping[str, int], cluster: Cluster, ask: Ask
) -> dict[str, Any]:
    """The object of `plan simulate`."""
    parts = breakdown(timeline, 0)
    found = Prediction(
        step_time_s=timeline.step_time,
        compute_time_s=parts.compute,
        exposed_communication_time_s=parts.exposed_communication,
        idle_time_s=parts.idle,
        memory_bytes=dict(memory_bytes),
    )
    return {**_predicted(found, cluster, ask), "pipeline": None}


def simulate_pipeline_record(
    pipeline: Pipeline, found: PipelinePrediction, cluster: Cluster, ask: Ask
) -> dict[str, Any]:
    """The object of `plan simulate` for a pipeline."""
    step = found.step_time_s
    return {
        **_predicted(prediction_of_places(pipeline, found), cluster, ask),
        "pipeline": {
            "schedule": pipeline.schedule.name,
            "stages": [stage_figures(pipeline, found, stage) for stage in range(len(found.stages))],
            "bubble": [max(0.0, waits / step) for waits in found.timing.bubbles],
        },
    }


def _predicted(found: Prediction, cluster: Cluster, ask: Ask) -> dict[str, Any]:
    total = found.total_memory_bytes
    return {
        "step_time_s": found.step_time_s,
        "compute_time_s": found.compute_time_s,
        "exposed_communication_time_s": found.exposed_communication_time_s,
        "idle_time_s": found.idle_time_s,
        "memory_bytes": {**found.memory_bytes, "total": total},
        "memory_capacity_bytes": cluster.device.usable_memory,
        "memory_allowed_bytes": ask.allowed_memory(cluster.device),
        "fits": total <= ask.allowed_memory(cluster.device),
    }


def models_record(models: Mapping[str, ModelSpec]) -> dict[str, Any]:
    """The object of `plan models`."""

    def sizes(name: str, of: ModelSpec | Preset) -> dict[str, Any]:
        return {
            "name": name,
            "description": of.description,
            "batch_per_device": of.batch_per_device,
            "options": dict(of.options),
        }

    return {
        "models": [
            {
                **sizes(name, spec),
                "presets": [sizes(preset, of) for preset, of in spec.presets.items()],
            }
            for name, spec in models.items()
        ]
    }
