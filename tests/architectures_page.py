"""What became of architectures on ranks, a row each; and the page of the docs, in two parts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from kinds import kinds_for
from matrix import TOLERANCES
from tiny_configs import ARCHITECTURES

__all__ = ["KINDS", "MORE", "Row", "page"]

#: The kinds of the table of two ranks in float64.
KINDS = ("chosen", "data", "zero3", "tensor")


@dataclass(slots=True)
class Row:
    """What became of one architecture."""

    kind: str
    name: str
    model: str = ""
    inputs: tuple[str, ...] = ()
    num_nodes: int = 0
    discovered: tuple[str, ...] = ()
    replicated: tuple[str, ...] = ()
    errors: dict[str, float | str] = field(default_factory=dict)
    not_admitted: dict[str, str] = field(default_factory=dict)
    left_out: float = 0.0
    refused: str = ""
    run: str = ""
    ranks: int = 2
    dtype: str = "float64"
    kinds: tuple[str, ...] = ()  # the plans that were asked for

    @property
    def passed(self) -> bool:
        """Whether all kinds that the model admits, the chosen ones among them, are verified."""
        if self.refused or self.replicated or "chosen" not in self.errors:
            return False
        return all(self.verified(kind) for kind in self.errors)

    def verified(self, kind: str) -> bool:
        error = self.errors.get(kind)
        return isinstance(error, float) and error <= TOLERANCES[self.dtype]


def _table(rows: list[Row]) -> str:
    lines = [
        "| architecture | class | inputs | nodes | discovered | replicated | "
        + " | ".join(KINDS)
        + " | left out |"
    ]
    lines.append("|---|---|---|--:|---|---|" + "--:|" * len(KINDS) + "--:|")
    for row in rows:
        cells = (
            [_error(row.errors.get(kind)) for kind in KINDS]
            if not row.refused
            else ["-"] * len(KINDS)
        )
        words = [
            ", ".join(x.split(".")[1] for x in ops) or "-"
            for ops in (row.discovered, row.replicated)
        ]
        cells = [
            row.model or "-",
            ", ".join(row.inputs) or "-",
            str(row.num_nodes or "-"),
            *words,
            *cells,
            f"{row.left_out:.1%}" if row.left_out else "-",
        ]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _error(error: float | str | None) -> str:
    return "-" if error is None else error if isinstance(error, str) else f"{error:.0e}"


def _without_folders(text: str) -> str:
    """A message with the paths of installed files from their package on."""
    return re.sub(r"\S*site-packages/", "", text)


def _runs(rows: list[Row]) -> str:
    """Which run the rows are of; of several, the rows of each."""
    of = {
        run: [row.name for row in rows if row.run == run]
        for run in sorted({row.run for row in rows})
    }
    if len(of) == 1:
        return f"All rows are of one run: {rows[0].run}."
    return "\n".join(
        [
            "The rows are of several runs:",
            "",
            *(f"* {run}: {', '.join(names)}" for run, names in of.items()),
        ]
    )


def document(rows: list[Row]) -> str:
    """The page of the docs."""
    order = [name for names in ARCHITECTURES.values() for name in names]
    rows = sorted(rows, key=lambda row: order.index(row.name))
    passed = sum(row.passed for row in rows)
    parts = [
        "# Hugging Face architectures",
        "This page is for finding out whether an architecture of transformers can be planned, and how that was tried.",
        "Written by `python tests/architectures.py --write docs/architectures.md`. Each "
        "architecture is built from its config at a tiny size (`tests/tiny_configs.py`), in "
        "float64, with the dropout and the noise of its config; its whole step is traced, planned "
        "for two devices without a pin (*chosen*) and under each pure strategy, and trained for "
        "three steps on two gloo ranks. The figures are the largest relative error of losses, "
        "first gradients and last parameters and buffers against one process; 1e-9 passes.",
        "What rounding alone does to each model is measured, by training it a second time in one "
        "process from parameters that differ by one rounding "
        "([0061](decisions/0061-verifying-against-measured-rounding.md)). *Left out* is the share "
        "of the parameters' elements that this may move by more than 1e-9 in three steps: their "
        "gradients are zero, or nearly, but for rounding, and Adam divides them by their own "
        "size. Of these elements only what exceeds it counts; their gradients are compared like "
        "all others.",
        "A model of text and images (or sound) that runs on text alone is given text alone (see "
        "*inputs*): its other towers then take no part in the loss, and are frozen.",
        _runs(rows),
        f"**{passed} of {len(rows)}** are verified under every plan with no op replicated for "
        "lack of a rule.",
    ]
    for kind in ARCHITECTURES:
        mine = [row for row in rows if row.kind == kind]
        if mine:
            parts += [f"## {kind.capitalize()}", _table(mine)]
    failed = [
        f"* `{row.name}`: {_without_folders(row.refused) or 'see its row'}"
        for row in rows
        if not row.passed
    ]
    parts += ["## What does not pass, and why", "\n".join(failed) or "Nothing."]
    return "\n\n".join(parts) + "\n"


#: The heading of the page's second part.
MORE = "## On four ranks, in float32, and with experts and sequences split"


def more(rows: list[Row]) -> str:
    """The second part of the page: how many of a sample are verified, by ranks, dtype and kind
    of plan."""
    runs, rows = sorted({row.run for row in rows}), _merged(rows)
    settings = sorted(
        {(row.ranks, row.dtype) for row in rows}, key=lambda setting: (-setting[0], setting[1])
    )
    kinds = (*kinds_for(4), "random")
    lines = [f"| ranks | dtype | tried | {' | '.join(kinds)} | largest error | left out at most |"]
    lines.append("|--:|---|" + "--:|" * (len(kinds) + 3))
    tried = []
    for ranks, dtype in settings:
        mine = [row for row in rows if (row.ranks, row.dtype) == (ranks, dtype)]
        lines.append(f"| {ranks} | {dtype} | {' | '.join(_counts(mine, kinds))} |")
        tried.append(f"* {ranks} ranks, {dtype}: {', '.join(row.name for row in mine)}")
    parts = [
        MORE,
        _MORE_WORDS,
        "\n".join(["Runs:", "", *(f"* {run}" for run in runs)]),
        "\n".join(lines),
    ]
    parts += ["Tried:", "\n".join(tried), "### What is not admitted", _not_admitted(rows)]
    parts += ["### What fails, and why", _failures(rows) or "Nothing."]
    return "\n\n".join(parts) + "\n"


def _counts(rows: list[Row], kinds: tuple[str, ...]) -> list[str]:
    """The cells of one number of ranks and dtype."""
    errors = [error for row in rows for error in row.errors.values() if isinstance(error, float)]
    most = max(rows, key=lambda row: row.left_out)
    told = [_error(max(errors, default=None)), f"{most.left_out:.1%} ({most.name})"]
    return [str(len(rows)), *(_verified(rows, kind) for kind in kinds), *told]


def _merged(rows: list[Row]) -> list[Row]:
    """One row for each architecture, number of ranks and dtype; of a plan made twice the last."""
    of: dict[tuple[str, int, str], Row] = {}
    for row in rows:
        old = of.setdefault((row.name, row.ranks, row.dtype), row)
        old.errors |= row.errors
        old.not_admitted = {
            kind: why
            for kind, why in {**old.not_admitted, **row.not_admitted}.items()
            if kind not in old.errors
        }
        old.left_out = max(old.left_out, row.left_out)
    return list(of.values())


_MORE_WORDS = (
    "Written by `python tests/architectures.py NAME... --ranks 4 --dtype float32 --kinds all "
    "--save ROWS.json` (or `--kinds random`), one for each pair of ranks and dtype, and `--load "
    "ROWS.json... --write docs/architectures.md`, on two shared cores of an AMD EPYC. The same "
    "steps and the same comparison as above; 1e-9 passes in float64, 1e-4 in float32. On four "
    "ranks models have four key heads in the place of two, and sounds are longer, so that there "
    "is something to split. *Expert* splits the experts, and sends tokens to them; *sequence* "
    "splits it in norms, *context* in every op that can; both mean the positions of an image or a "
    "sound where there is no text; *random* are four plans each that are the best under random "
    "costs ([0080](decisions/0080-plans-under-random-costs.md)), which split what no cost would "
    "choose. A cell says how many are verified of those that admit the plan."
)


def _verified(rows: list[Row], kind: str) -> str:
    tried = [
        (row, one)
        for row in rows
        for one in row.errors
        if one == kind or one.startswith(f"{kind} ")
    ]
    return f"{sum(row.verified(one) for row, one in tried)} of {len(tried)}" if tried else "-"


def _not_admitted(rows: list[Row]) -> str:
    """Each reason, and the plans that it is the planner's message for."""
    of: dict[str, dict[str, bool]] = {}
    for row in rows:
        for kind, message in row.not_admitted.items():
            reason = _without_folders(message)
            where = "" if kind == "expert" else f" ({kind}, {row.ranks} ranks)"
            of.setdefault(reason, {})[f"`{row.name}`{where}"] = True
    return "\n".join(f"* {', '.join(names)}: {reason}" for reason, names in of.items())


def _failures(rows: list[Row]) -> str:
    failed = [
        f"* `{row.name}`, {row.ranks} ranks, {row.dtype}: {_without_folders(row.refused)}"
        for row in rows
        if row.refused
    ]
    for row in rows:
        for kind, error in row.errors.items():
            if not row.verified(kind):
                failed.append(
                    f"* `{row.name}`, {row.ranks} ranks, {row.dtype}, {kind}: {_error(error)}"
                )
    return "\n".join(failed)


def page(rows: list[Row], old: str) -> str:
    """The page with the parts new that there are rows of: two ranks in float64 with the table's
    kinds alone, or others."""
    table, _, rest = old.partition(MORE)
    of_table = [
        row for row in rows if (row.ranks, row.dtype, tuple(row.kinds)) == (2, "float64", KINDS)
    ]
    others = [row for row in rows if row not in of_table]
    first = document(of_table) if of_table else table.rstrip() + "\n"
    second = more(others) if others else MORE + rest if rest else ""
    return first + "\n" + second if second else first
