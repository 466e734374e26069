"""Simulated against measured step time on this machine, after `plan calibrate`.

    python benchmarks/accuracy.py [--models lstm,mlp,cnn,gpt] [--ranks 1,2,4] [--steps 15] [--out FILE]

Plans are made for the calibrated machine and run here. Error is predicted / measured - 1. The baseline is one constant, seconds a flop,
fitted to the same rows.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cost_models.cluster import load_cluster
from planner.ask import Ask
from planner.plan import modelled, write_plan
from planner.search import search
from planner.trace import trace
from planner.workload import load_workload
from runtime.calibrate import calibrated_path
from runtime.compare import compare

#: Sizes at which a step takes some tens to hundreds of milliseconds on this machine.
SIZES: dict[str, dict[str, Any]] = {
    "lstm": {"batch": 256, "seq": 50, "settings": {"vocab": "4000"}},
    "mlp": {"batch": 256, "seq": None, "settings": {"hidden": "1024"}},
    "cnn": {"batch": 128, "seq": None, "settings": {}},
    "gpt": {"batch": 16, "seq": 64, "settings": {"layers": "2", "vocab": "4096"}},
}


def flops_of(model: str) -> float:
    """Flops of all products of one step."""
    traced = trace(lambda: load_workload(model, num_devices=1, dtype="float32", **SIZES[model]))
    ops = modelled(traced).dims.ops
    kinds = ("gemm", "conv", "attention", "lstm")
    return sum(o.signature.cost(o.letter_sizes(o.sizes)).flops for o in ops if o.signature.kind in kinds and o.signature.cost)


def measure(model: str, ranks: int, steps: int) -> dict[str, Any]:
    """The row of one model on some ranks."""
    cluster = load_cluster(calibrated_path(), num_devices=ranks)
    found = search(Ask(model=model, dtype="float32", num_devices=ranks, **SIZES[model]), cluster)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        write_plan(found.plan, path)
        compared = compare(path, num_steps=steps)
    return {
        "model": model, "ranks": ranks, "mesh": str(found.plan.mesh), "predicted_s": compared.predicted_step_time_s,
        "measured_s": compared.measured_step_time_s, "error": compared.error, "flops": flops_of(model),
        "predicted_peak_bytes": compared.predicted_peak_memory_bytes, "measured_peak_bytes": compared.measured_peak_memory_bytes,
        "by_kind": [row.as_json() for row in compared.by_kind],
    }  # fmt: skip


def summary(errors: list[float]) -> dict[str, float]:
    sizes = [abs(e) for e in errors]
    return {
        "n": len(errors), "mean": statistics.mean(sizes), "median": statistics.median(sizes), "max": max(sizes),
        "bias": statistics.mean(errors),
    }  # fmt: skip


def baseline(rows: list[dict[str, Any]]) -> list[float]:
    """Errors of one constant, seconds a flop, fitted in the logarithm to the same rows."""
    rate = math.exp(statistics.mean(math.log(r["measured_s"] / r["flops"]) for r in rows))
    return [rate * r["flops"] / r["measured_s"] - 1 for r in rows]


def show(name: str, found: dict[str, float]) -> None:
    print(
        f"{name:9s} n {found['n']:.0f}  mean {found['mean']:.1%}  median {found['median']:.1%}  max {found['max']:.1%}  "
        f"bias {found['bias']:+.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="lstm,mlp,cnn,gpt")
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = []
    for model in asked.models.split(","):
        for ranks in map(int, asked.ranks.split(",")):
            row = measure(model, ranks, asked.steps)
            rows.append(row)
            print(
                f"{model:5s} {ranks} ranks  {row['mesh']:12s} predicted {row['predicted_s'] * 1e3:7.1f} ms  "
                f"measured {row['measured_s'] * 1e3:7.1f} ms  {row['error']:+.1%}  memory {row['predicted_peak_bytes'] / 2**20:.0f} "
                f"of {row['measured_peak_bytes'] / 2**20:.0f} MiB", flush=True
            )  # fmt: skip
    found, one = summary([r["error"] for r in rows]), summary(baseline(rows))
    show("simulated", found)
    show("one rate", one)
    if asked.out is not None:
        record = {
            "date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__, "command": "python benchmarks/accuracy.py",
            "rows": rows, "summary": found, "baseline": one,
        }  # fmt: skip
        asked.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
