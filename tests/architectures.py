"""Every Hugging Face architecture of `tiny_configs.py`: traced, planned, run and verified on ranks;
the tables in the docs.

python tests/architectures.py [NAME...] [--ranks 4] [--dtype float32] [--kinds all] [--save
ROWS.json] [--write docs/architectures.md]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from architectures_page import KINDS, Row, page
from kinds import RANDOM, kinds_for, plan_of, what_is_wrong
from matrix import TOLERANCES, Case, largest_error, verifications_of
from small_plans import traced
from tiny_configs import ARCHITECTURES, tiny_settings

from cost_models.errors import NoPlan, UserError
from planner.models.hugging_face_config import config_of
from planner.strategy.traced_model import Model
from planner.workload.ask import Ask

__all__ = ["ask_of", "rows_of"]


def ask_of(name: str, special: dict[str, object], ranks: int = 2, dtype: str = "float64") -> Ask:
    """The architecture at its tiny size, with no fewer key heads and frames of sound than ranks."""
    settings = tiny_settings(name, special, config_of(f"hf:{name}"))
    if ranks > 2 and "num_key_value_heads" not in special:
        settings |= _more_heads(settings)
        # Eight frames of sound instead of two.
        settings |= {"seq": 2800} if settings.get("seq") == 800 else {}
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in settings.items()
    }
    seq = int(texts.pop("seq", "16"))
    return Ask(model=f"hf:{name}", batch=4, seq=seq, settings=texts, dtype=dtype, num_devices=ranks)


def _more_heads(settings: dict[str, object]) -> dict[str, object]:
    """Four key heads in the place of two; and eight heads, so that groups remain, where their
    size does not follow from that."""
    out: dict[str, object] = {}
    for prefix in [
        name.removesuffix("num_key_value_heads")
        for name in settings
        if name.endswith("num_key_value_heads")
    ]:
        out[f"{prefix}num_key_value_heads"] = 4
        if {f"{prefix}head_dim", f"{prefix}num_attention_heads"} <= set(settings):
            out[f"{prefix}num_attention_heads"] = 8
    return out


def rows_of(
    wanted: list[str],
    say: bool = False,
    *,
    ranks: int = 2,
    dtype: str = "float64",
    kinds: Sequence[str] = KINDS,
) -> list[Row]:
    """One row for each architecture that is wanted (all, where none is named)."""
    rows, cases = [], {}
    for kind, architectures in ARCHITECTURES.items():
        for name, special in architectures.items():
            if wanted and name not in wanted and kind not in wanted:
                continue
            started = time.perf_counter()
            row = Row(kind, name, ranks=ranks, dtype=dtype, kinds=tuple(kinds))
            rows.append(row)
            try:
                cases.update(_plans(row, ask_of(name, special, ranks, dtype), kinds))
            except UserError as error:
                row.refused = str(error)
            if say:
                told = f"{row.num_nodes} {row.replicated} {row.refused} {row.not_admitted}"
                print(f"{time.perf_counter() - started:5.1f} s {name} {told}", flush=True)
    found = verifications_of(cases, ranks, report=print if say else None) if cases else {}
    for row in rows:
        mine = {
            kind: found[f"{row.name}: {kind}"] for kind in kinds if f"{row.name}: {kind}" in found
        }
        row.errors = {kind: largest_error(one) for kind, one in mine.items()}
        row.left_out = max(
            (f.num_left_out / f.num_elements for f in mine.values() if not isinstance(f, str)),
            default=0.0,
        )
    return rows


def this_run() -> str:
    """What the rows that are made now are of: commit, day and versions."""
    import transformers

    root = Path(__file__).parent
    found = subprocess.run(
        ["git", "-C", root, "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=True,
    )
    day = datetime.now(UTC).date()
    return f"commit {found.stdout.strip()}, {day}, torch {torch.__version__}, transformers {transformers.__version__}"


def _plans(row: Row, ask: Ask, kinds: Sequence[str]) -> dict[str, Case]:
    model, workload = traced(ask)
    module: Any = workload.module
    row.model, row.inputs = type(module.model).__name__, module.names
    row.num_nodes = len(model.graph.nodes)
    row.discovered, row.replicated = (
        ops_by_source(model, "discovered"),
        ops_by_source(model, "replicated"),
    )
    cases = {}
    for kind in kinds:
        try:
            plan = plan_of(ask, (kinds_for(row.ranks) | RANDOM[row.ranks])[kind])
        except NoPlan as error:
            row.not_admitted[kind] = str(error)
            continue
        if wrong := what_is_wrong(kind, plan):
            row.not_admitted[kind] = wrong
        else:
            cases[f"{row.name}: {kind}"] = Case(ask, plan.programs)
    return cases


def ops_by_source(model: Model, source: str) -> tuple[str, ...]:
    """The ops of which the rule is discovered, or of which none is found and that are
    replicated."""
    found = {n.op for n in model.graph.nodes if model.dims.ops[n.index].signature.source == source}
    return tuple(sorted(found))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", help="architectures or kinds of them; all where none is named"
    )
    parser.add_argument("--save", type=Path, help="a JSON file for the rows")
    parser.add_argument(
        "--load", type=Path, nargs="*", help="rows saved before, instead of running"
    )
    parser.add_argument("--write", type=Path, help="the page of the docs")
    parser.add_argument("--ranks", type=int, default=2, choices=(2, 4))
    parser.add_argument("--dtype", default="float64", choices=tuple(TOLERANCES))
    parser.add_argument(
        "--kinds",
        choices=("table", "all", "random"),
        default="table",
        help="kinds of plan: tests/kinds.py",
    )
    given = parser.parse_args(arguments)
    groups = {"all": tuple(kinds_for(given.ranks)), "random": tuple(RANDOM[given.ranks])}
    kinds = groups.get(given.kinds, KINDS)
    if given.load:
        rows = [Row(**row) for path in given.load for row in json.loads(path.read_text())]
    else:
        run = this_run()
        rows = [
            replace(row, run=run)
            for row in rows_of(
                given.names, say=True, ranks=given.ranks, dtype=given.dtype, kinds=kinds
            )
        ]
    if given.save:
        given.save.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    text = page(rows, given.write.read_text() if given.write and given.write.exists() else "")
    if given.write:
        given.write.write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
