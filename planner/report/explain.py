"""`plan explain`: the choice for every class of like ops and parameters, with its cost, beside the
report's words.

The model is traced again, since a plan's file holds only choices. A class is one row, however often
its layer is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from cost_models.memory import dtype_bytes
from cost_models.units import format_bytes, format_time
from planner.dims.roots import is_view
from planner.dims.ties import pattern_of
from planner.graph.fused import FUSED, body_of, called
from planner.graph.graph import Node
from planner.graph.layout import Mesh, show_layout
from planner.plans.kept import kept_rows
from planner.plans.models import modelled
from planner.plans.pipeline_replay import clusters_of, models_of, stage_plans
from planner.plans.plan import Plan
from planner.plans.replay import choices_of, costing_of, traced_of
from planner.plans.words import atom_names, op_words, parameter_words
from planner.report.mesh_words import mesh_body
from planner.report.pipeline_sections import pipeline_section, stage_splits
from planner.report.report import proof_lines, title
from planner.report.sections import Section, Table
from planner.strategy.choices import Choices
from planner.strategy.costing import Costing
from planner.strategy.strategies import SECOND
from planner.strategy.traced_model import Model
from planner.trace.traced import Traced

__all__ = ["explain", "explanation"]

#: What is told of every graph.
_ROWS = ("ops", "kept", "parameters")

#: The most rows of what is kept.
_KEPT_ROWS = 12


def _axes_of(plan: Plan, row: Mapping[str, Any]) -> tuple[str, ...]:
    """The axes that a row of groups has words for: those of its stage's mesh, after the stage."""
    if plan.pipeline is None:
        return plan.mesh.names
    return ("pp", *plan.pipeline.stages[int(row["ops"][0].removeprefix("stage "))].mesh.names)


def explain(plan: Plan) -> dict[str, Any]:
    """The explanation as data: what `plan explain --json` prints. Rows of a pipeline have the
    number of their stage."""
    traced = traced_of(plan)
    parts = list(_parts(plan, traced))
    return {
        "model": plan.ask.model,
        "hardware": plan.hardware.name,
        "mesh": dict(zip(plan.mesh.names, plan.mesh.sizes, strict=True)),
        "groups": [
            {
                "group": row["group"],
                "count": row["count"],
                "ops": dict(zip(_axes_of(plan, row), row["ops"], strict=True)),
                "parameters": dict(zip(_axes_of(plan, row), row["parameters"], strict=True)),
            }
            for row in plan.summary["groups"]
        ],
        **{key: [row for part in parts for row in part[key]] for key in _ROWS},
        "replicated_ops": list(plan.summary["replicated_ops"]),
        "discovered_ops": list(plan.summary.get("discovered_ops", [])),
        "ops_without_rule": list(plan.summary.get("ops_without_rule", [])),
        "solver": asdict(plan.solver),
    }


def _parts(plan: Plan, traced: Traced) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """The rows of the plan, or of each of its stages."""
    if plan.pipeline is None:
        model = modelled(traced, plan.ask)
        yield _rows(plan, model, costing_of(plan, model), traced, {})
        return
    models = models_of(plan, traced).models
    owns = zip(stage_plans(plan), models, clusters_of(plan), strict=True)
    for stage, (own, model, devices) in enumerate(owns):
        yield _rows(own, model, costing_of(own, model, devices), traced, {"stage": stage})


def _rows(
    plan: Plan, model: Model, costing: Costing, traced: Traced, more: dict[str, int]
) -> dict[str, list[dict[str, Any]]]:
    """The rows of one graph, each with `more`."""
    choices = choices_of(plan, model)
    names = atom_names(model, traced.workload)
    found = (
        _ops(plan, model, choices, costing, names),
        map(asdict, kept_rows(model, choices, costing)),
        _parameters(plan, model, choices, costing, names),
    )
    return {key: [more | row for row in rows] for key, rows in zip(_ROWS, found, strict=True)}


def _ops(
    plan: Plan, model: Model, choices: Choices, costing: Costing, names: dict[int, str]
) -> Iterator[dict[str, Any]]:
    axes = range(len(plan.mesh.sizes))
    for members in model.ties.nodes_of:
        node = model.graph.nodes[members[0]]
        if is_view(model.dims, node.index) or node.index not in choices.strategies:
            continue
        strategy = choices.strategies[node.index]
        yield {
            "group": pattern_of(node.path),
            "op": _name(node),
            "phase": node.phase,
            "count": len(members),
            **_again(choices, members),
            "splits": {
                plan.mesh.names[axis]: op_words(model, names, choices, node, axis, plan.mesh)
                for axis in axes
            },
            "results": [show_layout(layout) for layout in strategy.results],
            "time_s": costing.ops.cost(node, model.dims.ops[node.index], strategy),
        }


def _again(choices: Choices, members: tuple[int, ...]) -> dict[str, int]:
    """How many of some tied ops run again in backward; nothing if none does."""
    count = sum(choices.strategies[member].mode in SECOND for member in members)
    return {"again": count} if count else {}


def _name(node: Node) -> str:
    """The op's name; of a fused op those of its members."""
    name = node.op.split(".")[1]
    return f"{name}: {called(body_of(node.args))}" if node.op == FUSED else name


def _parameters(
    plan: Plan, model: Model, choices: Choices, costing: Costing, names: dict[int, str]
) -> Iterator[dict[str, Any]]:
    axes = range(len(plan.mesh.sizes))
    for members in model.ties.parameters_of:
        index = members[0]
        parameter, strategy = model.graph.parameters[index], choices.parameters[index]
        value = model.graph.values[parameter.value]
        flat = model.dims.flat(value.id)
        held = costing.updates.parameter_bytes(
            flat, dtype_bytes(value.dtype), value.dtype, strategy
        )
        yield {
            "name": pattern_of(parameter.name),
            "shape": list(value.shape),
            "count": len(members),
            "kept": {
                plan.mesh.names[axis]: parameter_words(
                    model, names, choices, [index], axis, plan.mesh
                )
                for axis in axes
            },
            "stored": show_layout(strategy.stored),
            "updated": show_layout(strategy.updated),
            "memory_bytes": sum(held.values()),
        }


def explanation(plan: Plan, record: Mapping[str, Any]) -> tuple[Section, ...]:
    """The explanation as sections to read."""
    head: tuple[Section, ...]
    if plan.pipeline is not None:
        head = (pipeline_section(plan), stage_splits(plan))
    else:
        head = (Section(title=title(plan), body=mesh_body(plan)),)
    return (
        *head,
        *(
            replace(section, title=words + section.title)
            for words, mesh, rows in _by_stage(plan, record)
            for section in _sections(rows, tuple(str(mesh).split(",")))
        ),
        Section(title="Proof", body=proof_lines(plan)),
    )


def _by_stage(
    plan: Plan, record: Mapping[str, Any]
) -> Iterator[tuple[str, Mesh, dict[str, list[Any]]]]:
    """The rows of each stage and its mesh, with the words before a section's title; stages with the
    same rows on the same mesh are told once."""
    stages = list(dict.fromkeys(row.get("stage") for row in record["ops"]))
    found: list[tuple[list[Any], Mesh, dict[str, list[Any]]]] = []
    for stage in stages:
        mesh = plan.mesh if plan.pipeline is None else plan.pipeline.stages[stage].mesh
        rows = {
            key: [_without_stage(r) for r in record[key] if r.get("stage") == stage]
            for key in _ROWS
        }
        same = next((some for some, *other in found if other == [mesh, rows]), None)
        if same is None:
            found.append(([stage], mesh, rows))
        else:
            same.append(stage)
    for some, mesh, rows in found:
        words = f"Stage{'s' * (len(some) > 1)} {', '.join(map(str, some))}: "
        yield ("" if some == [None] else words), mesh, rows


def _without_stage(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "stage"}


def _sections(record: Mapping[str, Any], axes: tuple[str, ...]) -> tuple[Section, ...]:
    """What the ops of a graph split, how its parameters are kept, what is held for backward."""
    total = sum(row["time_s"] * row["count"] for row in record["ops"]) or 1.0
    ops = tuple(
        (
            _times(row["group"] or "(loss and top level)", row["count"]),
            f"{row['op']} ({row['phase']}{_how_many_again(row)})",
            *row["splits"].values(),
            format_time(row["time_s"]),
            f"{100 * row['time_s'] * row['count'] / total:.1f} %",
        )
        for row in record["ops"]
    )
    parameters = tuple(
        (
            _times(row["name"], row["count"]),
            "x".join(map(str, row["shape"])),
            *row["kept"].values(),
            format_bytes(row["memory_bytes"]),
        )
        for row in record["parameters"]
    )
    last = len(axes) + 2
    return (
        Section(
            title="What every op splits",
            body=(
                Table(
                    header=("layers", "op", *axes, "time", "of all"),
                    rows=ops,
                    right=frozenset({last, last + 1}),
                ),
            ),
        ),
        Section(
            title="How every parameter is kept (memory per device, with optimizer state)",
            body=(
                Table(
                    header=("parameter", "shape", *axes, "memory"),
                    rows=parameters,
                    right=frozenset({last}),
                ),
            ),
        ),
        *_kept(record["kept"]),
    )


def _how_many_again(row: Mapping[str, Any]) -> str:
    """`, and again` for ops that run again in backward; how many, if not all of a class do."""
    again = row.get("again", 0)
    if not again:
        return ""
    return ", and again" if again == row["count"] else f", {again} of them again"


def _kept(rows: Sequence[Mapping[str, Any]]) -> tuple[Section, ...]:
    """What is held between forward and backward, the largest first."""
    if not rows:
        return ()
    total = sum(row["nbytes"] for row in rows)
    shown = [
        (
            _times(row["group"] or "(loss and top level)", row["count"]),
            row["op"],
            format_bytes(row["nbytes"]),
            f"{100 * row['nbytes'] / total:.1f} %",
        )
        for row in rows[:_KEPT_ROWS]
    ]
    rest = sum(row["nbytes"] for row in rows[_KEPT_ROWS:])
    if rest:
        share = f"{100 * rest / total:.1f} %"
        shown.append((f"{len(rows) - _KEPT_ROWS} more", "", format_bytes(rest), share))
    table = Table(
        header=("layers", "result of", "memory", "of all"),
        rows=(*shown, ("all", "", format_bytes(total), "")),
        right=frozenset({2, 3}),
    )
    return (Section(title="Kept from forward to backward (memory per device)", body=(table,)),)


def _times(name: str, count: int) -> str:
    return f"{name} (x{count})" if count > 1 else name
