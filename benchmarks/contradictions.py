"""What reports say against themselves, over model families, clusters and numbers of devices: to be
0.

python benchmarks/contradictions.py [--only TEXT] [--families lstm,gpt,...] [--clusters
cpu,dgx-h100,...] [--gpus 1,4,8,64]
    [--microbatches 4] [--processes 2] [--out FILE.json]

`--only` keeps the cases whose name (`gpt 8 dgx-h100`) contains a text. A case whose plan does not
fit, or that no plan is possible for, is counted apart. Exit code 1 if anything contradicts
anything.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from provenance import write_results

from cost_models.cluster import load_cluster
from cost_models.errors import UserError
from planner.plans.plan import Plan
from planner.plans.replay import program_of
from planner.predict.predict import predict
from planner.report.report import report
from planner.report.sections import Section, Table, markdown
from planner.search.search import search
from planner.workload.ask import Ask
from planner.workload.precision import precision_of

FAMILIES = (
    "lstm", "gru", "rnn", "mlp", "cnn", "resnet", "unet", "vit", "gpt", "bert", "t5", "llama",
    "moe", "dlrm", "seq2seq-lstm",
)  # fmt: skip
CLUSTERS = ("cpu", "dgx-h100", "dgx-h200", "dgx-a100", "p3.16xlarge", "g6.48xlarge")
GPUS = (1, 4, 8, 64)


def contradictions(plan: Plan, sections: Sequence[Section], step: float) -> list[str]:
    """What in a plan and its report cannot be true together; `step` is that of the plan's
    program, simulated again."""
    summary, found = plan.summary, []
    told = summary["step_time_s"]
    if abs(step / told - 1) > 1e-9:
        found.append(f"the program takes {step}, the plan says {told}")
    if plan.solver.bound > told * (1 + 1e-9):
        found.append(f"the step {told} is below its bound {plan.solver.bound}")
    if abs(plan.solver.gap - (1 - plan.solver.bound / told)) > 1e-9:
        found.append(f"the gap {plan.solver.gap} is not that of step and bound")
    for row in plan.alternatives:
        if row.step_time_s is None:
            found += [] if row.reason else [f"{row.name}: no step and no reason"]
        elif row.fits and row.step_time_s < told:
            found.append(f"{row.name} fits and is faster: {row.step_time_s} < {told}")
        elif row.fits and row.memory_bytes > summary["memory_allowed_bytes"]:
            found.append(f"{row.name} fits with {row.memory_bytes} bytes")
    memory = dict(summary["memory_bytes"])
    total = memory.pop("total")
    if sum(memory.values()) != total:
        found.append(f"parts of memory sum to {sum(memory.values())}, not {total}")
    if summary["fits"] != (total <= summary["memory_allowed_bytes"]):
        found.append(
            f"fits: {summary['fits']} with {total} bytes of {summary['memory_allowed_bytes']}"
        )
    parts = sum(
        summary[key] for key in ("compute_time_s", "exposed_communication_time_s", "idle_time_s")
    )
    if abs(parts / told - 1) > 1e-6:
        found.append(f"parts of the step sum to {parts}, not {told}")
    return found + [f"the report says {word!r}" for word in _said(sections, plan.solver.gap)]


def _said(sections: Sequence[Section], gap: float) -> list[str]:
    """Words that a report does not use: of a status with a gap, of nothing counted, of a figure
    that is not there."""
    text = markdown(sections)
    tables = [
        part
        for section in sections
        if section.title == "Baselines"
        for part in section.body
        if isinstance(part, Table)
    ]
    said = ["- in the table"] if any("-" in row for table in tables for row in table.rows) else []
    said += ["optimal"] if "optimal" in text and gap > 1e-6 else []
    return said + re.findall(r"(?<![\d,.\w])(?:0 variables|nan|inf)\b", text)


def planned(case: tuple[str, int, str, int]) -> dict[str, Any]:
    """The row of one case."""
    model, num_devices, hardware, microbatches = case
    torch.set_num_threads(1)
    parts = f" in {microbatches}" if microbatches > 1 else ""
    began, row = time.perf_counter(), {"case": f"{model} {num_devices} {hardware}{parts}"}
    ask = Ask(
        model=model,
        batch=None,
        seq=None,
        settings={},
        **precision_of("fp32").fields(),
        num_devices=num_devices,
        microbatches=microbatches,
        per_microbatch=("*",) if microbatches > 1 else (),
    )
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            plan = search(ask, load_cluster(hardware, num_devices=num_devices)).plan
        except UserError as error:
            return {
                **row,
                "error": f"{type(error).__name__}: {error}",
                "seconds": time.perf_counter() - began,
                "found": [],
            }
        step = predict(program_of(plan), plan.hardware.cluster()).step_time_s
    found = contradictions(plan, report(plan, {"plan": "plan.json"}), step)
    more = {"mesh": str(plan.mesh), "step_s": plan.summary["step_time_s"], "gap": plan.solver.gap}
    return {
        **row,
        **more,
        "seconds": time.perf_counter() - began,
        "found": found,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--clusters", default=",".join(CLUSTERS))
    parser.add_argument("--gpus", default=",".join(map(str, GPUS)))
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    cases = [
        (model, int(n), hardware, asked.microbatches)
        for model in asked.families.split(",")
        for hardware in asked.clusters.split(",")
        for n in asked.gpus.split(",")
        if asked.only in f"{model} {n} {hardware}"
    ]
    rows, began = [], time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(asked.processes) as pool:
        for row in pool.imap_unordered(planned, cases):
            rows.append(row)
            told = (
                row.get("error")
                or f"{row['mesh']:18s} {row['step_s']:.4e} s  gap {100 * row['gap']:5.1f} %"
            )
            print(
                f"{row['case']:28s} {row['seconds']:6.1f} s  {told}",
                *row["found"],
                sep="\n    ",
                flush=True,
            )
    count, errors = sum(len(row["found"]) for row in rows), sum("error" in row for row in rows)
    print(
        f"{count} contradictions in {len(rows)} cases ({errors} without a plan), {time.perf_counter() - began:.0f} s"
    )
    write_results(asked, contradictions=count, rows=rows)
    return int(count > 0)


if __name__ == "__main__":
    raise SystemExit(main())
