"""A `Plan` as a file: JSON, versioned, tied to its graph by a hash; read back, every part is
checked."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cost_models.atomic_write import write_atomically
from cost_models.errors import BadPlan
from cost_models.optimizers import OPTIMIZERS
from planner.graph.layout import Mesh
from planner.plans.plan import Alternative, Hardware, Plan, SolverRecord, Training
from planner.plans.plan_choices import (
    check_choices,
    check_pipeline,
    option_text,
    read_choices,
    read_pipeline,
    show_choices,
    show_pipeline,
)
from planner.plans.plan_modes import read_modes, show_modes
from planner.plans.plan_schema import (
    Damaged,
    Summary,
    check,
    check_stages,
    check_summary,
    part,
    undeclared,
)
from planner.workload.ask import Ask
from planner.workload.precision import DTYPES, PLAIN

__all__ = ["option_text", "plan_text", "read_plan", "write_plan"]

FORMAT = "shardwright-plan"
VERSION = 2


def plan_text(plan: Plan) -> str:
    """The plan as JSON."""
    body = {
        "format": FORMAT,
        "version": VERSION,
        "ask": _ask(plan.ask),
        "training": asdict(plan.training),
        "hardware": asdict(plan.hardware),
        "graph_hash": plan.graph_hash,
        "hash_seed": plan.hash_seed,
        "mesh": {"names": plan.mesh.names, "sizes": plan.mesh.sizes},
        **show_choices(plan),
        **({"modes": show_modes(plan.modes)} if plan.modes else {}),
        **({"pipeline": show_pipeline(plan.pipeline)} if plan.pipeline is not None else {}),
        "solver": asdict(plan.solver),
        "summary": dict(plan.summary),
        "alternatives": [asdict(a) for a in plan.alternatives],
    }
    return json.dumps(body, indent=1) + "\n"


def _ask(ask: Ask) -> dict[str, Any]:
    """The ask as JSON; formats that are those of the parameters are left out, and what says of
    microbatches that there is one, or that nothing is compiled."""
    body = asdict(ask)
    for key, default in (("microbatches", 1), ("per_microbatch", ()), ("compile", False)):
        if body[key] == default:
            del body[key]
    if ask.formats == PLAIN:
        del body["formats"]
    return body


def write_plan(plan: Plan, path: Path) -> None:
    """Writes the plan as JSON, whole or not at all."""
    write_atomically(path, plan_text(plan))


def read_plan(path: str | Path) -> Plan:
    """The plan in a file. Raises BadPlan if the file is no plan, truncated, or of another
    version."""
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadPlan(
            f"{path}: cannot be read ({error.strerror}); make a plan with: plan --model NAME --gpus N"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadPlan(f"{path}: not a complete plan file ({error}); plan again") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise BadPlan(f"{path}: not a plan file (no format {FORMAT!r})")
    if body.get("version") != VERSION:
        raise BadPlan(
            f"{path}: a plan of version {body.get('version')}, but this program reads version "
            f"{VERSION}; plan again"
        )
    try:
        return _parse(body)
    except Damaged as error:
        raise BadPlan(
            f"{path}: the plan file is damaged ({' '.join(str(error).split())}); plan again"
        ) from error


def _parse(body: dict[str, Any]) -> Plan:
    """The plan made of a file's parts, each checked. Raises Damaged."""
    mesh = part(body, "mesh", Mesh)
    summary = {**part(body, "summary", Summary), **undeclared(body["summary"])}
    pipeline = read_pipeline(body)
    stages = () if pipeline is None else pipeline.stages
    check_summary(summary, {1 + len(one.mesh.sizes) for one in stages} or {len(mesh.sizes)})
    plan = Plan(
        ask=part(body, "ask", Ask),
        training=part(body, "training", Training),
        hardware=part(body, "hardware", Hardware),
        graph_hash=part(body, "graph_hash", str),
        hash_seed=part(body, "hash_seed", str),
        mesh=mesh,
        **read_choices(body),
        modes=read_modes(body),
        pipeline=pipeline,
        solver=part(body, "solver", SolverRecord),
        summary=summary,
        alternatives=part(body, "alternatives", tuple[Alternative, ...]),
    )
    _check(plan)
    return plan


def _check(plan: Plan) -> None:
    """Raises Damaged for parts that contradict each other, or that no plan can have."""
    mesh, ask, training = plan.mesh, plan.ask, plan.training
    check(
        bool(mesh.sizes) and min(mesh.sizes) >= 1,
        "mesh",
        mesh.sizes,
        "every axis must have at least one device",
    )
    for what, number in (
        ("hardware.num_devices", plan.hardware.num_devices),
        ("ask.num_devices", ask.num_devices),
    ):
        check(number == mesh.num_devices, what, number, f"the mesh has {mesh.num_devices}")
    for what, given in (("batch", ask.batch), ("seq", ask.seq)):
        check(
            given is None or given >= 1,
            f"ask.{what}",
            given,
            "a whole number of at least 1, or null",
        )
    check(ask.microbatches >= 1, "ask.microbatches", ask.microbatches, "at least 1")
    _check_dtypes(ask)
    check(
        0 <= ask.memory_headroom < 1,
        "ask.memory_headroom",
        ask.memory_headroom,
        "a share from 0 up to 1",
    )
    for what, norm in (
        ("ask.clip_norm", ask.clip_norm),
        ("training.clip_norm", training.clip_norm),
    ):
        check(norm is None or 0 < norm < float("inf"), what, norm, "a positive number, or null")
    check(
        0 <= training.clip_epsilon < 1,
        "training.clip_epsilon",
        training.clip_epsilon,
        "a number of at least 0, below 1",
    )
    check(
        training.optimizer in OPTIMIZERS,
        "training.optimizer",
        training.optimizer,
        f"one of {', '.join(OPTIMIZERS)}",
    )
    if plan.pipeline is None:
        check_choices(plan, mesh)
    else:
        schedule = check_pipeline(plan.pipeline, ask.microbatches, mesh.num_devices)
        check_stages(plan.summary, schedule.num_stages, schedule.num_places)


def _check_dtypes(ask: Ask) -> None:
    """Raises Damaged for a format that is none."""
    known = ", ".join(DTYPES)
    check(ask.dtype in DTYPES, "ask.dtype", ask.dtype, f"one of {known}")
    for what, dtype in (
        ("compute", ask.compute),
        ("formats.master", ask.formats.master),
        ("formats.reduce", ask.formats.reduce),
        ("formats.accumulate", ask.formats.accumulate),
    ):
        check(dtype in ("", *DTYPES), f"ask.{what}", dtype, f"empty or one of {known}")
