"""What `--json` prints: one object a verb, SI units, stable keys. docs/json.md lists them; a test holds the two together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cost_models.breakdown import breakdown

if TYPE_CHECKING:
    from cost_models.cluster import Cluster
    from cost_models.timeline import Timeline
    from planner.plan import Plan

__all__ = ["plan_record", "simulate_record"]

_STEP = ("step_time_s", "compute_time_s", "exposed_communication_time_s", "idle_time_s")
_RATES = ("samples_per_s", "tokens_per_s", "mfu")
_MEMORY = ("memory_bytes", "memory_capacity_bytes", "fits")


def plan_record(plan: Plan, files: Mapping[str, str]) -> dict[str, Any]:
    """The object of `plan` and of `plan report`."""
    summary = plan.summary
    return {
        "model": plan.ask.model,
        "hardware": plan.hardware.name,
        "num_devices": plan.hardware.num_devices,
        "mesh": dict(zip(plan.mesh.names, plan.mesh.sizes, strict=True)),
        **{key: summary[key] for key in (*_STEP, *_RATES, *_MEMORY)},
        "alternatives": [
            {"name": a.name, "step_time_s": a.step_time_s, "memory_bytes": a.memory_bytes, "fits": a.fits}
            for a in plan.alternatives
        ],
        "solver": {
            "status": plan.solver.status, "objective": plan.solver.objective, "bound": plan.solver.bound, "gap": plan.solver.gap,
            "time_s": plan.solver.time_s, "num_variables": plan.solver.num_variables,
        },
        "replicated_ops": list(summary["replicated_ops"]),
        "planning_time_s": summary["planning_time_s"],
        "files": {key: files[key] for key in ("plan", "report", "timeline")},
    }  # fmt: skip


def simulate_record(timeline: Timeline, memory_bytes: Mapping[str, int], cluster: Cluster) -> dict[str, Any]:
    """The object of `plan simulate`."""
    parts = breakdown(timeline, 0)
    total = sum(memory_bytes.values())
    return {
        "step_time_s": timeline.step_time,
        "compute_time_s": parts.compute,
        "exposed_communication_time_s": parts.exposed_communication,
        "idle_time_s": parts.idle,
        "memory_bytes": {**memory_bytes, "total": total},
        "memory_capacity_bytes": cluster.device.usable_memory,
        "fits": total <= cluster.device.usable_memory,
    }
