"""The report of a plan: sections of lines and tables, drawn in the terminal with rich or written as Markdown.

Plan -> `report` -> Sections -> `show` | `markdown`. All of it stands in the plan's file, so that a plan can be reported again
without its model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cost_models.units import format_bytes, format_rate, format_time

if TYPE_CHECKING:
    from rich.console import Console

    from planner.plan import Plan

__all__ = ["Section", "Table", "group_words", "markdown", "memory_table", "report", "show", "time_lines"]

_CATEGORY_WORDS = {
    "parameters": "parameters",
    "optimizer": "optimizer state",
    "gradients": "gradients",
    "activations": "activations",
    "gathered": "gathered pieces",
    "temporaries": "temporaries of backward",
    "inputs": "batch and buffers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text under a header; `right` are the columns aligned to the right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A title over lines and tables."""

    title: str
    body: tuple[str | Table, ...]


# ------------------------------------------------------------------------------------------------- what it says


def report(plan: Plan, files: Mapping[str, str]) -> tuple[Section, ...]:
    """The whole report; `files` are the plan's files by what they hold."""
    summary = plan.summary
    return (
        Section(title=_title(plan), body=(_model_line(plan),)),
        Section(title="Mesh", body=(*_axis_lines(plan), group_words(plan))),
        Section(title="One step", body=time_lines(summary)),
        Section(title="Memory of a device", body=memory_table(summary)),
        Section(title="Compared with what one would have typed", body=_alternatives(plan)),
        Section(title="Proof", body=_solver_lines(plan)),
        Section(title="Files", body=(Table(header=(), rows=tuple(files.items())),)),
    )


def _title(plan: Plan) -> str:
    count = plan.hardware.num_devices
    nodes = f", {plan.hardware.num_nodes} nodes" if plan.hardware.num_nodes > 1 else ""
    return f"{plan.ask.model} on {count} device{'s' if count > 1 else ''} of {plan.hardware.name}{nodes}"


def _model_line(plan: Plan) -> str:
    summary = plan.summary
    sizes = ", ".join(f"{name} {value}" for name, value in summary["options"].items())
    parameters = format_rate(summary["num_parameters"], "").strip()
    return f"{parameters} parameters in {summary['dtype']}, optimizer {summary['optimizer']}; {sizes}"


def _axis_lines(plan: Plan) -> Iterable[str]:
    """One sentence an axis: what it splits, and where."""
    if plan.mesh.num_devices == 1:
        return ["one device: nothing is split"]
    return [_axis_line(plan, axis) for axis in range(len(plan.mesh.sizes))]


def _axis_line(plan: Plan, axis: int) -> str:
    where: dict[str, list[str]] = {}
    for row in plan.summary["groups"]:
        where.setdefault(row["ops"][axis], []).append(row["group"])
    kept = where.pop("whole", []) + where.pop("-", [])
    name = f"{plan.mesh.names[axis]}={plan.mesh.sizes[axis]}"
    if not where:
        return f"{name} splits nothing that the ops do"
    if len(where) == 1 and not kept:
        return f"{name} splits {next(iter(where))} everywhere"
    return f"{name} splits " + "; ".join(f"{word} in {_some(groups)}" for word, groups in where.items())


def _some(groups: Sequence[str], most: int = 4) -> str:
    more = f" and {len(groups) - most} more" if len(groups) > most else ""
    return ", ".join(groups[:most]) + more


def group_words(plan: Plan) -> Table:
    """What every axis splits, layer group by layer group."""
    axes = [f"{name}={size}" for name, size in zip(plan.mesh.names, plan.mesh.sizes, strict=True)]
    rows = []
    for row in plan.summary["groups"]:
        name = row["group"] + (f" (x{row['count']})" if row["count"] > 1 else "")
        rows.append((name, *row["ops"], _parameter_words(plan.mesh.names, row["parameters"])))
    return Table(header=("layers", *axes, "parameters"), rows=tuple(rows))


def _parameter_words(names: Sequence[str], words: Sequence[str]) -> str:
    """The words of all axes in one cell: told by axis only where they differ."""
    if len(set(words)) == 1:
        return words[0]
    return "; ".join(f"{name}: {word}" for name, word in zip(names, words, strict=True) if word != "whole")


def time_lines(summary: Mapping[str, Any]) -> tuple[str | Table, ...]:
    """The step time in its parts, and the rates that follow."""
    step = summary["step_time_s"]
    parts = (
        ("compute", "compute_time_s"),
        ("exposed communication", "exposed_communication_time_s"),
        ("idle", "idle_time_s"),
    )
    rows = [(name, format_time(summary[key]), _percent(summary[key] / step)) for name, key in parts]
    rows.append(("step (simulated)", format_time(step), ""))
    out: list[str | Table] = [Table(header=("time", "", "share"), rows=tuple(rows), right=frozenset({1, 2}))]
    if "samples_per_s" in summary:
        tokens = f", {format_rate(summary['tokens_per_s'], 'tokens/s')}"
        shown = tokens if summary["tokens_per_s"] != summary["samples_per_s"] else ""
        out.append(
            f"{format_rate(summary['samples_per_s'], 'samples/s')}{shown}; "
            f"MFU {_percent(summary['mfu'])} of the {summary['dtype']} peak"
        )
    return tuple(out)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def memory_table(summary: Mapping[str, Any]) -> tuple[str | Table, ...]:
    """Memory at its peak by category, against what the device has."""
    capacity = summary["memory_capacity_bytes"]
    held = dict(summary["memory_bytes"])
    total = held.pop("total")
    rows = [
        (_CATEGORY_WORDS.get(name, name), format_bytes(nbytes), _percent(nbytes / capacity))
        for name, nbytes in held.items()
        if nbytes
    ]
    rows.append(("peak", format_bytes(total), _percent(total / capacity)))
    rows.append(("usable", format_bytes(capacity), "fits" if summary["fits"] else "DOES NOT FIT"))
    return (Table(header=("at the peak", "", "of usable"), rows=tuple(rows), right=frozenset({1, 2})),)


def _alternatives(plan: Plan) -> tuple[str | Table, ...]:
    step = plan.summary["step_time_s"]
    rows = [
        ("this plan", str(plan.mesh), format_time(step), "1.00 x", format_bytes(plan.summary["memory_bytes"]["total"]), "yes")
    ]
    reasons = []
    for row in plan.alternatives:
        if row.step_time_s is None or row.memory_bytes is None:
            rows.append((row.name, row.mesh, "-", "-", "-", "-"))
            reasons.append(f"{row.name}: {row.reason}")
            continue
        fits = "yes" if row.fits else "no"
        rows.append(
            (row.name, row.mesh, format_time(row.step_time_s), f"{row.step_time_s / step:.2f} x",
             format_bytes(row.memory_bytes), fits)
        )  # fmt: skip
    return (
        Table(header=("plan", "mesh", "step", "", "memory", "fits"), rows=tuple(rows), right=frozenset({2, 3, 4})),
        *reasons,
    )


def _solver_lines(plan: Plan) -> tuple[str, ...]:
    solver = plan.solver
    lines = [
        f"{solver.status}: sum of costs {format_time(solver.objective)}, no plan on this mesh is below {format_time(solver.bound)} "
        f"(gap {solver.gap:.1e}); {solver.num_variables:,} variables, {solver.time_s:.2f} s",
    ]
    if solver.hidden:
        lines.append(
            f"the sum counts {_percent(1 - solver.hidden)} of parameters' and gradients' communication: the rest hides behind compute"
        )
    whole = plan.summary["replicated_ops"]
    if whole:
        lines.append("run whole on every device: " + ", ".join(whole))
    lines.append(f"planned in {plan.summary['planning_time_s']:.1f} s")
    return tuple(lines)


# ------------------------------------------------------------------------------------------------- how it looks


def show(sections: Iterable[Section], console: Console) -> None:
    """Draws the sections in a terminal, or into a pipe; nothing is cut off, cells wrap."""
    from rich.text import Text

    for number, section in enumerate(sections):
        if number:
            console.print()
        console.print(Text(section.title, style="bold cyan"))
        for part in section.body:
            console.print(Text(part) if isinstance(part, str) else _rich_table(part))


def _rich_table(table: Table) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=SIMPLE_HEAD, show_header=bool(table.header), pad_edge=False, show_edge=False, header_style="bold")
    for index in range(max(map(len, (table.header, *table.rows)))):
        title = table.header[index] if index < len(table.header) else ""
        drawn.add_column(Text(title), justify="right" if index in table.right else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    return drawn


def markdown(sections: Iterable[Section]) -> str:
    """The same as a Markdown file."""
    out: list[str] = []
    for number, section in enumerate(sections):
        out += [f"{'#' if number == 0 else '##'} {section.title}", ""]
        for part in section.body:
            out += [*_markdown_table(part), ""] if isinstance(part, Table) else [_escape(part), ""]
    return "\n".join(out)


def _markdown_table(table: Table) -> list[str]:
    width = max(map(len, (table.header, *table.rows)))
    header = table.header or ("",) * width
    rule = ["--:" if index in table.right else "---" for index in range(width)]
    return [_markdown_row(header), _markdown_row(rule), *map(_markdown_row, table.rows)]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escape, cells)) + " |"


def _escape(text: str) -> str:
    """`*`, `_` and `|` as themselves: module patterns are full of them."""
    for mark in ("*", "|"):
        text = text.replace(mark, f"\\{mark}")
    return text
