"""The mesh of a plan in words: what every axis splits, in a sentence and layer group by layer
group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cost_models.axis_links import links_in_words
from planner.report.sections import Table

if TYPE_CHECKING:
    from planner.plans.plan import Plan

__all__ = ["mesh_body"]


def mesh_body(plan: Plan) -> tuple[str | Table, ...]:
    """What every axis splits: in a sentence, and layer group by layer group."""
    whole = plan.summary["replicated_ops"]
    told = [("not part of the loss, so never updated: ", plan.summary.get("take_no_part", []))]
    told.append(
        (
            "constants that neither the model nor the loss registers: ",
            plan.summary.get("constants", []),
        )
    )
    told.append(("run whole on every device: ", whole))
    told.append(("run whole for lack of a rule: ", plan.summary.get("ops_without_rule", [])))
    told.append(
        ("rule discovered by running the op in shards: ", plan.summary.get("discovered_ops", []))
    )
    return (
        *_axis_lines(plan),
        _group_words(plan),
        *(words + ", ".join(ops) for words, ops in told if ops),
    )


def _axis_lines(plan: Plan) -> Iterable[str]:
    """One sentence per axis: what it splits, and where."""
    if plan.mesh.num_devices == 1:
        return ["one device: nothing is split"]
    runs = [links_in_words(plan.summary["axes"])] if plan.summary.get("axes") else []
    return runs + [_axis_line(plan, axis) for axis in range(len(plan.mesh.sizes))]


def _axis_line(plan: Plan, axis: int) -> str:
    where: dict[str, list[str]] = {}
    for row in plan.summary["groups"]:
        where.setdefault(row["ops"][axis], []).append(row["group"])
    for word in ("whole", "partial sums", "-"):
        where.pop(word, None)
    name = f"{plan.mesh.names[axis]}={plan.mesh.sizes[axis]}"
    if not where:
        return f"{name} splits no op, only parameters"
    return f"{name} splits " + "; ".join(
        f"{word} in {_some(groups)}" for word, groups in where.items()
    )


def _some(groups: Sequence[str], most: int = 5) -> str:
    more = f" and {len(groups) - most} more" if len(groups) > most else ""
    return ", ".join(groups[:most]) + more


def _group_words(plan: Plan) -> Table:
    axes = [f"{name}={size}" for name, size in zip(plan.mesh.names, plan.mesh.sizes, strict=True)]
    rows = []
    for row in sorted(plan.summary["groups"], key=lambda row: row["group"].startswith("(")):
        name = row["group"] + (f" (x{row['count']})" if row["count"] > 1 else "")
        rows.append((name, *row["ops"], _parameter_words(plan.mesh.names, row["parameters"])))
    return Table(header=("layers", *axes, "parameters"), rows=tuple(rows))


def _parameter_words(names: Sequence[str], words: Sequence[str]) -> str:
    """The words of all axes in one cell: given by axis only if they differ."""
    if len(set(words)) == 1:
        return words[0]
    return "; ".join(
        f"{name}: {word}" for name, word in zip(names, words, strict=True) if word != "whole"
    )
