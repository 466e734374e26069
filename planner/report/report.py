"""The reports of a plan and of its simulation as sections of lines and tables.

Plan -> `report` -> Sections, which `sections` draws. All of it stands in the plan's file, so that a
plan can be reported again without its model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from cost_models.axis_links import axis_links, links_in_words
from cost_models.units import format_bytes, format_rate, format_time
from planner.report.mesh_words import mesh_body
from planner.report.pipeline_sections import (
    pipeline_proof,
    pipeline_section,
    stage_memory,
    stage_recomputed,
    stage_splits,
    stage_table,
)
from planner.report.sections import Section, Table
from planner.report.step import memory_table, percent, time_lines
from planner.workload.precision import format_words

if TYPE_CHECKING:
    from cost_models.machine import Cluster
    from planner.plans.plan import Plan

__all__ = ["proof_lines", "report", "simulation", "title"]


def report(plan: Plan, files: Mapping[str, str]) -> tuple[Section, ...]:
    """The whole report; `files` are the plan's files by what they hold."""
    summary = plan.summary
    if plan.pipeline is not None:
        return _of_pipeline(plan, files)
    return (
        Section(title=title(plan), body=(_model_line(plan), *_microbatches(plan))),
        Section(title="Mesh", body=mesh_body(plan)),
        Section(title="One step", body=time_lines(summary)),
        Section(title="Memory per device", body=(*memory_table(summary), *_cast_again(plan))),
        *_recomputed(plan),
        Section(title="Baselines", body=_alternatives(plan)),
        Section(title="Proof", body=proof_lines(plan)),
        Section(title="Files", body=(Table(header=(), rows=tuple(files.items())),)),
    )


def _of_pipeline(plan: Plan, files: Mapping[str, str]) -> tuple[Section, ...]:
    """The report of a pipeline, stage by stage."""
    summary = plan.summary
    baselines = Section(title="Baselines", body=_alternatives(plan))
    return (
        Section(title=title(plan), body=(_model_line(plan),)),
        pipeline_section(plan),
        stage_splits(plan),
        Section(title="One step, of the pipeline rank that waits least", body=time_lines(summary)),
        stage_memory(plan),
        Section(
            title="Memory per device, of the pipeline rank that holds most",
            body=memory_table(summary),
        ),
        *stage_recomputed(plan),
        *((baselines,) if plan.alternatives else ()),
        Section(title="Proof", body=proof_lines(plan)),
        Section(title="Files", body=(Table(header=(), rows=tuple(files.items())),)),
    )


def title(plan: Plan) -> str:
    """The model and what it is planned for."""
    count = plan.hardware.num_devices
    nodes = f", {plan.hardware.num_nodes} nodes" if plan.hardware.num_nodes > 1 else ""
    return f"{plan.ask.model} on {count} device{'s' if count > 1 else ''} of {plan.hardware.name}{nodes}"


def _model_line(plan: Plan) -> str:
    summary = plan.summary
    sizes = ", ".join(f"{name} {value}" for name, value in summary["options"].items())
    parameters = format_rate(summary["num_parameters"], "").strip()
    compiled = "; elementwise chains compiled" if plan.ask.compile else ""
    return f"{parameters} parameters in {_formats(plan)}, optimizer {_optimizer(plan)}; {sizes}{compiled}"


def _microbatches(plan: Plan) -> tuple[str, ...]:
    """Sentences on microbatches; none if there is one."""
    number = plan.summary.get("microbatches", 1)
    if number == 1:
        return ()
    allowed = plan.summary.get("per_microbatch")
    return (
        f"a step runs in {number} microbatches, one after another",
        *(
            (
                f"statistics of {', '.join(allowed)} are taken over each microbatch, not over the "
                "batch: the step is that of plain gradient accumulation",
            )
            if allowed
            else ()
        ),
    )


def _optimizer(plan: Plan) -> str:
    """The optimizer, with what was asked of it."""
    rate = {} if plan.ask.learning_rate is None else {"lr": plan.ask.learning_rate}
    given = {**rate, **plan.ask.optimizer_settings}
    told = ", ".join(
        f"{key} {' '.join(map(str, v)) if isinstance(v, tuple | list) else v}"
        for key, v in given.items()
    )
    return f"{plan.summary['optimizer']} ({told})" if told else str(plan.summary["optimizer"])


def _formats(plan: Plan) -> str:
    """The format of the parameters, and those of products, master copies and gradients if they are
    others."""
    formats = plan.ask.formats
    if plan.summary.get("microbatches", 1) == 1:
        formats = replace(formats, accumulate="")
    return format_words(plan.ask.dtype, plan.summary["dtype"], formats)


def _cast_again(plan: Plan) -> tuple[str, ...]:
    """A sentence on parameters that are cast again for backward; none if the casts are kept."""
    if not plan.recast:
        return ()
    return (
        f"parameters are cast to {plan.summary['dtype']} again in backward: the casts of forward "
        "would not fit if they were kept",
    )


def _recomputed(plan: Plan) -> tuple[Section, ...]:
    """What runs again in backward, what that costs and what is not held for it; none if nothing
    does."""
    found, checkpoints = plan.summary.get("recomputed"), plan.summary.get("checkpoints", ())
    modules = ", ".join(path or "(top level)" for path in checkpoints)
    asked = f"the model has {modules} under torch.utils.checkpoint"
    if found is None:
        lines = (f"{asked}; --recompute or pins keep it",) if checkpoints else ()
        return tuple(Section(title="Recomputed in backward", body=(line,)) for line in lines)
    rows = tuple(
        (
            f"{row['group'] or '(top level)'} (x{row['count']})",
            ", ".join(f"{name} x{n}" if n > 1 else name for name, n in row["ops"].items()),
            format_time(row["time_s"]),
            format_bytes(row["held_less_bytes"]),
        )
        for row in found["groups"]
    )
    share = percent(found["time_s"] / plan.summary["step_time_s"])
    messages = found["messages_time_s"]
    of_it = f", {format_time(messages)} of that messages" if messages else ""
    total = (
        f"{format_time(found['time_s'])}, {share} of the step{of_it}; "
        f"{format_bytes(found['held_less_bytes'])} less is held from forward to backward"
    )
    table = Table(
        header=("layers", "what runs again", "time", "held less"),
        rows=rows,
        right=frozenset({2, 3}),
    )
    body = (table, total, *((asked,) if checkpoints else ()))
    return (Section(title="Recomputed in backward", body=body),)


def _alternatives(plan: Plan) -> tuple[str | Table, ...]:
    step = plan.summary["step_time_s"]
    name = plan.summary.get("standard_name")
    this = "this plan" if name is None else f"this plan: {name}"
    rows = [
        (
            this,
            str(plan.mesh),
            format_time(step),
            "1.00 x",
            format_bytes(plan.summary["memory_bytes"]["total"]),
            "yes",
        )
    ]
    for row in plan.alternatives:
        if row.step_time_s is None or row.memory_bytes is None:
            continue
        fits = ("made to fit" if row.made_to_fit else "yes") if row.fits else "no"
        rows.append(
            (
                row.name,
                row.mesh,
                format_time(row.step_time_s),
                f"{row.step_time_s / step:.2f} x",
                format_bytes(row.memory_bytes),
                fits,
            )
        )
    return (
        Table(
            header=("plan", "mesh", "step", "", "memory", "fits"),
            rows=tuple(rows),
            right=frozenset({2, 3, 4}),
        ),
        *(f"{row.name}: {row.reason}" for row in plan.alternatives if row.step_time_s is None),
        *_ruled_out(plan),
        *_extrapolated_from(plan.summary.get("extrapolated_from", ())),
    )


def _ruled_out(plan: Plan) -> tuple[str, ...]:
    """The baselines that the plan may not be, however fast."""
    names = [
        row.name for row in plan.alternatives if not row.allowed and row.step_time_s is not None
    ]
    return (f"ruled out by the given mesh and pins: {', '.join(names)}",) if names else ()


def _extrapolated_from(depths: Sequence[int]) -> tuple[str, ...]:
    """The depths from which figures of plans that were not simulated whole are extrapolated."""
    return (
        (f"all but the fastest are extrapolated from {' and '.join(map(str, depths))} layers",)
        if depths
        else ()
    )


def proof_lines(plan: Plan) -> tuple[str, ...]:
    """How good the plan is, and how that is known."""
    if plan.pipeline is not None:
        return pipeline_proof(plan)
    solver, summary = plan.solver, plan.summary
    step, bound = format_time(summary["step_time_s"]), format_time(solver.bound)
    meshes = "the one mesh" if solver.num_meshes == 1 else f"the {solver.num_meshes} meshes"
    number = plan.ask.microbatches
    parts = f" in {number} microbatches" if number > 1 else ""
    lines = [
        f"step time {step}, lower bound {bound}, gap {percent(solver.gap)}",
        f"the bound holds for all plans{parts} on {meshes} searched that split repeated layers in the "
        f"same way{' and fit' if summary.get('bound_of_fitting') else ', whether they fit or not'}",
        f"proved in {solver.time_s:.2f} s; planned in {summary['planning_time_s']:.1f} s in total",
    ]
    if left_out := summary.get("left_out"):
        lines.insert(
            2,
            f"not searched: {', '.join(left_out)}; their tables of strategy pairs do not fit in "
            "memory; --mesh plans one of them",
        )
    if why := summary.get("only_one_microbatch"):
        lines.append(f"memory is short, and more microbatches were not searched: {why}")
    if limit := summary.get("time_limit_s"):
        late = summary.get("late")
        meshes = f"; not searched: {', '.join(late)}" if late else ""
        lines.append(
            f"stopped at the time limit of {limit:g} s{meshes}; raise --time-limit to search more"
        )
    return tuple(lines)


def simulation(
    plan: Plan, cluster: Cluster, record: Mapping[str, Any], files: Mapping[str, str]
) -> tuple[Section, ...]:
    """The report of `plan simulate`."""
    where = f"simulated on {cluster.num_devices} x {cluster.device.name} ({cluster.name})"
    runs = links_in_words(map(asdict, axis_links(cluster, plan.mesh.names, plan.mesh.sizes)))
    stages = _simulated_stages(record)
    return (
        Section(title=title(plan), body=(f"{where}, mesh {plan.mesh}", *((runs,) if runs else ()))),
        *stages,
        Section(title="One step", body=time_lines(record)),
        Section(title="Memory per device", body=memory_table(record)),
        Section(title="Files", body=(Table(header=(), rows=tuple(files.items())),)),
    )


def _simulated_stages(record: Mapping[str, Any]) -> tuple[Section, ...]:
    """The stages of a pipeline that was simulated; none for a plan of one stage."""
    pipeline = record["pipeline"]
    if pipeline is None:
        return ()
    table = stage_table(pipeline["stages"], pipeline["bubble"])
    return (Section(title="Pipeline", body=(table,)),)
