"""Every Hugging Face architecture of `tiny_configs.py`: traced, planned, run and verified on ranks; the tables in the docs.

python tests/architectures.py [NAME...] [--ranks 4] [--dtype float32] [--kinds all] [--save ROWS.json] [--write docs/architectures.md]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from kinds import kinds_for, plan_of, what_is_wrong
from matrix import TOLERANCES, Case, largest_error, verifications_of
from small_plans import traced
from tiny_configs import ARCHITECTURES, tiny_settings

from cost_models.errors import NoPlan, UserError
from planner.ask import Ask
from planner.model import Model
from planner.models.hugging_face import config_of

__all__ = ["KINDS", "Row", "ask_of", "rows_of"]

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

    @property
    def passed(self) -> bool:
        """Whether all kinds that the model admits, the chosen ones among them, are verified."""
        if self.refused or self.replicated or "chosen" not in self.errors:
            return False
        return all(self.verified(kind) for kind in self.errors)

    def verified(self, kind: str) -> bool:
        error = self.errors.get(kind)
        return isinstance(error, float) and error <= TOLERANCES[self.dtype]


def ask_of(name: str, special: dict[str, object], ranks: int = 2, dtype: str = "float64") -> Ask:
    """The architecture at its tiny size, with no fewer key heads and frames of sound than ranks."""
    settings = tiny_settings(name, special, config_of(f"hf:{name}"))
    if ranks > 2 and "num_key_value_heads" not in special:
        settings |= _more_heads(settings)
        settings |= {"seq": 2800} if settings.get("seq") == 800 else {}  # eight frames of sound in the place of two
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    seq = int(texts.pop("seq", "16"))
    return Ask(model=f"hf:{name}", batch=4, seq=seq, settings=texts, dtype=dtype, num_devices=ranks)


def _more_heads(settings: dict[str, object]) -> dict[str, object]:
    """Four key heads in the place of two; and eight heads, so that groups remain, where their size does not follow from that."""
    out: dict[str, object] = {}
    for prefix in [name.removesuffix("num_key_value_heads") for name in settings if name.endswith("num_key_value_heads")]:
        out[f"{prefix}num_key_value_heads"] = 4
        if {f"{prefix}head_dim", f"{prefix}num_attention_heads"} <= set(settings):
            out[f"{prefix}num_attention_heads"] = 8
    return out


def rows_of(
    wanted: list[str], say: bool = False, *, ranks: int = 2, dtype: str = "float64", kinds: Sequence[str] = KINDS
) -> list[Row]:  # fmt: skip
    """One row for each architecture that is wanted (all, where none is named)."""
    rows, cases = [], {}
    for kind, architectures in ARCHITECTURES.items():
        for name, special in architectures.items():
            if wanted and name not in wanted and kind not in wanted:
                continue
            started = time.perf_counter()
            row = Row(kind, name, ranks=ranks, dtype=dtype)
            rows.append(row)
            try:
                cases.update(_plans(row, ask_of(name, special, ranks, dtype), kinds))
            except UserError as error:
                row.refused = str(error)
            if say:
                told = f"{row.num_nodes} {row.replicated} {row.refused} {row.not_admitted}"
                print(f"{time.perf_counter() - started:5.1f} s {name} {told}", flush=True)
    found = verifications_of(cases, ranks, report=print if say else None)
    for row in rows:
        mine = {kind: found[f"{row.name}: {kind}"] for kind in kinds if f"{row.name}: {kind}" in found}
        row.errors = {kind: largest_error(one) for kind, one in mine.items()}
        row.left_out = max((f.num_left_out / f.num_elements for f in mine.values() if not isinstance(f, str)), default=0.0)
    return rows


def this_run() -> str:
    """What the rows that are made now are of: commit, day and versions."""
    import transformers

    root = Path(__file__).parent
    found = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    day = datetime.now(UTC).date()
    return f"commit {found.stdout.strip()}, {day}, torch {torch.__version__}, transformers {transformers.__version__}"


def _plans(row: Row, ask: Ask, kinds: Sequence[str]) -> dict[str, Case]:
    model, workload = traced(ask)
    module: Any = workload.module
    row.model, row.inputs = type(module.model).__name__, module.names
    row.num_nodes = len(model.graph.nodes)
    row.discovered, row.replicated = ops_by_source(model, "discovered"), ops_by_source(model, "replicated")
    cases = {}
    for kind in kinds:
        try:
            plan = plan_of(ask, kinds_for(row.ranks)[kind])
        except NoPlan as error:
            row.not_admitted[kind] = str(error)
            continue
        if wrong := what_is_wrong(kind, plan):
            row.not_admitted[kind] = wrong
        else:
            cases[f"{row.name}: {kind}"] = Case(ask, plan.programs)
    return cases


def ops_by_source(model: Model, source: str) -> tuple[str, ...]:
    """The ops of which the rule is discovered, or of which none is found and that are replicated."""
    found = {n.op for n in model.graph.nodes if model.dims.ops[n.index].signature.source == source}
    return tuple(sorted(found))


def _table(rows: list[Row]) -> str:
    lines = ["| architecture | class | inputs | nodes | discovered | replicated | " + " | ".join(KINDS) + " | left out |"]
    lines.append("|---|---|---|--:|---|---|" + "--:|" * len(KINDS) + "--:|")
    for row in rows:
        cells = [_error(row.errors.get(kind)) for kind in KINDS] if not row.refused else ["-"] * len(KINDS)
        words = [", ".join(x.split(".")[1] for x in ops) or "-" for ops in (row.discovered, row.replicated)]
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
    of = {run: [row.name for row in rows if row.run == run] for run in sorted({row.run for row in rows})}
    if len(of) == 1:
        return f"All rows are of one run: {rows[0].run}."
    return "\n".join(["The rows are of several runs:", "", *(f"* {run}: {', '.join(names)}" for run, names in of.items())])


def document(rows: list[Row]) -> str:
    """The page of the docs."""
    order = [name for names in ARCHITECTURES.values() for name in names]
    rows = sorted(rows, key=lambda row: order.index(row.name))
    passed = sum(row.passed for row in rows)
    parts = [
        "# Hugging Face architectures",
        "Written by `python tests/architectures.py --write docs/architectures.md`. Each architecture is built "
        "from its config at a tiny size (`tests/tiny_configs.py`), in float64, "
        "with the dropout and the noise of its config; its whole step is traced, planned for two devices without a pin "
        "(*chosen*) and under each pure strategy, and trained for three steps on two gloo ranks. The figures are the largest "
        "relative error of losses, first gradients and last parameters and buffers against one process; 1e-9 passes.",
        "What rounding alone does to each model is measured, by training it a second time in one process from parameters that are one "
        "rounding off ([0061](decisions/0061-verifying-against-measured-rounding.md)). *Left out* is the part of the elements of "
        "parameters that this may move further than 1e-9 in three steps, where gradients are 0 but for rounding, or nearly, and Adam "
        "divides them by their own size: of those only what is more than that counts. Their gradients are compared like all others.",
        "A model of text and images (or sound) that runs on text alone is given text alone (see *inputs*): its other towers then "
        "take no part in the loss, and are frozen.",
        _runs(rows),
        f"**{passed} of {len(rows)}** are verified under every plan with no op replicated for want of a rule.",
    ]
    for kind in ARCHITECTURES:
        mine = [row for row in rows if row.kind == kind]
        if mine:
            parts += [f"## {kind.capitalize()}", _table(mine)]
    failed = [f"* `{row.name}`: {_without_folders(row.refused) or 'see its row'}" for row in rows if not row.passed]
    parts += ["## What does not pass, and why", "\n".join(failed) or "Nothing."]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures or kinds of them; all where none is named")
    parser.add_argument("--save", type=Path, help="a JSON file for the rows")
    parser.add_argument("--load", type=Path, nargs="*", help="rows saved before, instead of running")
    parser.add_argument("--write", type=Path, help="the page of the docs")
    parser.add_argument("--ranks", type=int, default=2, choices=(2, 4))
    parser.add_argument("--dtype", default="float64", choices=tuple(TOLERANCES))
    parser.add_argument("--kinds", help="all, or some with commas between; else those of the table of two ranks in float64")
    given = parser.parse_args(arguments)
    kinds = tuple(kinds_for(given.ranks)) if given.kinds == "all" else tuple(given.kinds.split(",")) if given.kinds else KINDS
    if given.load:
        rows = [Row(**row) for path in given.load for row in json.loads(path.read_text())]
    else:
        run = this_run()
        rows = [
            replace(row, run=run) for row in rows_of(given.names, say=True, ranks=given.ranks, dtype=given.dtype, kinds=kinds)
        ]
    if given.save:
        given.save.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    text = document(rows)
    if given.write:
        given.write.write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
