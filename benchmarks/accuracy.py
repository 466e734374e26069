"""Simulated against measured step time on this machine, after `plan calibrate`.

    plan calibrate
    python benchmarks/accuracy.py [--models lstm,mlp,cnn,gpt] [--ranks 1,2,4] [--steps 15] [--rounds 2] [--out FILE]

Plans are made for the calibrated machine and run here, all of them in every round; the measured
step is the median over the steps of all rounds. Error is predicted / measured - 1. The baseline is
one constant, seconds a flop, fitted to the same rows. `others` is the share of the machine's cores
that processes other than the run's had meanwhile: above a few percent the row measures them too.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provenance import write_results
from running import SIZES

from cost_models.cluster import load_cluster
from planner.plans.models import modelled
from planner.plans.plan_file import write_plan
from planner.search.search import search
from planner.trace.trace import trace
from planner.workload.ask import Ask
from planner.workload.load import load_workload
from runtime.calibrate.calibrate import calibrated_path
from runtime.compare.compare import compare
from runtime.compare.comparison import Comparison


def flops_of(model: str) -> float:
    """Flops of all products of one step."""
    traced = trace(lambda: load_workload(model, num_devices=1, dtype="float32", **SIZES[model]))
    ops = modelled(traced).dims.ops
    kinds = ("gemm", "conv", "attention", "lstm")
    return sum(
        o.signature.cost(o.letter_sizes(o.sizes)).flops
        for o in ops
        if o.signature.kind in kinds and o.signature.cost
    )


@dataclass
class Case:
    """One model on some ranks: its plan, and what every round measured."""

    model: str
    ranks: int
    path: Path
    mesh: str
    compared: list[Comparison]
    others: list[float]

    def run(self, steps: int) -> None:
        before, start = _busy(), time.perf_counter()
        own = _children()
        self.compared.append(compare(self.path, num_steps=steps))
        cores = (os.cpu_count() or 1) * (time.perf_counter() - start)
        self.others.append(max(0.0, (_busy() - before) - (_children() - own)) / cores)

    def row(self) -> dict[str, Any]:
        last = self.compared[-1]
        measured = statistics.median(s for c in self.compared for s in c.step_times_s)
        return {
            "model": self.model,
            "ranks": self.ranks,
            "mesh": self.mesh,
            "predicted_s": last.predicted_step_time_s,
            "measured_s": measured,
            "error": last.predicted_step_time_s / measured - 1,
            "flops": flops_of(self.model),
            "round_medians_s": [c.measured_step_time_s for c in self.compared],
            "others": statistics.mean(self.others),
            "predicted_peak_bytes": last.predicted_peak_memory_bytes,
            "measured_peak_bytes": last.measured_peak_memory_bytes,
            "by_kind": [row.as_json() for row in last.by_kind],
        }


def _busy() -> float:
    """Core seconds that the machine has spent on anything since it started."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def _children() -> float:
    """Core seconds of this process and of the processes that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def plan_case(model: str, ranks: int, folder: Path) -> Case:
    cluster = load_cluster(calibrated_path(), num_devices=ranks)
    found = search(Ask(model=model, dtype="float32", num_devices=ranks, **SIZES[model]), cluster)
    path = folder / f"{model}-{ranks}.json"
    write_plan(found.plan, path)
    return Case(model, ranks, path, str(found.plan.mesh), [], [])


def summary(errors: list[float]) -> dict[str, float]:
    sizes = [abs(e) for e in errors]
    return {
        "n": len(errors),
        "mean": statistics.mean(sizes),
        "median": statistics.median(sizes),
        "max": max(sizes),
        "bias": statistics.mean(errors),
    }


def baseline(rows: list[dict[str, Any]]) -> list[float]:
    """Errors of one constant, seconds a flop, fitted in the logarithm to the same rows."""
    rate = math.exp(statistics.mean(math.log(r["measured_s"] / r["flops"]) for r in rows))
    return [rate * r["flops"] / r["measured_s"] - 1 for r in rows]


def provenance_of(hardware: str) -> dict[str, str]:
    """When and how the hardware file was measured."""
    found: dict[str, str] = tomllib.loads(Path(hardware).read_text())["provenance"]
    return found


def show(name: str, found: dict[str, float]) -> None:
    print(
        f"{name:9s} n {found['n']:.0f}  mean {found['mean']:.1%}  median {found['median']:.1%}  "
        f"max {found['max']:.1%}  bias {found['bias']:+.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="lstm,mlp,cnn,gpt")
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wanted = [
            (model, int(ranks))
            for model in asked.models.split(",")
            for ranks in asked.ranks.split(",")
        ]
        cases = [plan_case(model, ranks, Path(folder)) for model, ranks in wanted]
        for _ in range(asked.rounds):
            for case in cases:
                case.run(asked.steps)
    rows = [case.row() for case in cases]
    for row in rows:
        print(
            f"{row['model']:5s} {row['ranks']} ranks  {row['mesh']:12s} predicted {row['predicted_s'] * 1e3:7.1f} ms  "
            f"measured {row['measured_s'] * 1e3:7.1f} ms  {row['error']:+.1%}  others {row['others']:.0%}  memory "
            f"{row['predicted_peak_bytes'] / 2**20:.0f} of {row['measured_peak_bytes'] / 2**20:.0f} MiB",
            flush=True,
        )
    found, one = summary([r["error"] for r in rows]), summary(baseline(rows))
    show("simulated", found)
    show("one rate", one)
    calibration = provenance_of(calibrated_path())
    write_results(asked, calibration=calibration, rows=rows, summary=found, baseline=one)


if __name__ == "__main__":
    main()
