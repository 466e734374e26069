"""The chosen plan against others that can be typed and run, with and without stages: same model,
ranks and run, in float32.

    python benchmarks/pipeline_regret.py [--models gpt,lstm-large,t5] [--rounds 8] [--hardware FILE] [--out FILE]

Every round has one step of each, beginning with another; a step lasts until its last rank is done.
The regret is how much longer the chosen plan takes than the fastest, as the median over pairs.
Predictions are for ranks with a core each: with fewer cores, idle time of one rank is another's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed as dist
from provenance import write_results
from running import ratio_of, times_of

from cost_models.cluster import load_cluster
from cost_models.errors import UserError
from cost_models.machine import Cluster
from planner.graph.layout import Mesh
from planner.plans import pipeline_replay, replay
from planner.plans.plan import Plan
from planner.plans.plan_file import read_plan, write_plan
from planner.search.joint import joint_search
from planner.search.pipelines import Spec
from planner.search.search import search
from planner.search.typed_pipelines import typed_pipeline
from planner.strategy.pins import Pin
from planner.workload.ask import Ask
from runtime.launcher import launch
from runtime.parameters import build
from runtime.runner import lowered, make_runner
from runtime.worker import join

WARM_UP = 2

#: A step takes a few tenths of a second on two cores.
SIZES: dict[str, dict[str, Any]] = {
    "gpt": {
        "batch": 16,
        "seq": 64,
        "settings": {"layers": "12", "width": "256", "heads": "8", "vocab": "2048", "positions": "64"},
    },
    "lstm-large": {
        "batch": 32,
        "seq": 20,
        "settings": {"vocab": "2000", "embed": "256", "hidden": "256"},
    },
    "t5": {
        "batch": 16,
        "seq": 32,
        "settings": {"width": "128", "heads": "4", "mlp": "512", "vocab": "2048"},
    },
}  # fmt: skip

#: Schedule, places, axes of a place, microbatches.
TYPED = (
    ("1f1b", 4, (), 8),
    ("zbh1", 4, (), 8),
    ("zbv", 4, (), 8),
    ("1f1b", 4, (), 16),
    ("1f1b", 2, ("dp",), 4),
    ("zbv", 2, ("dp",), 4),
    ("1f1b", 2, ("tp",), 4),
)

#: Without stages.
WHOLE: dict[str, tuple[str, tuple[Pin, ...]]] = {
    "ddp": ("dp", (Pin("*", "ddp"),)),
    "zero3": ("dp", (Pin("*", "zero3"),)),
    "tensor": ("tp", ()),
}


@dataclass(frozen=True)
class Request:
    """Plan files by name, and the rounds that count."""

    plans: dict[str, str]
    rounds: int


def plans_of(ask: Ask, cluster: Cluster, ranks: int) -> Iterator[tuple[str, Plan]]:
    """The chosen plan, then all others that there are."""
    yield "chosen", joint_search(ask, cluster, any_microbatches=True).plan
    makers: dict[str, Callable[[], Plan]] = {
        name: lambda axis=axis, pins=pins: (
            search(ask, cluster, mesh=Mesh((axis,), (ranks,)), pins=pins).plan
        )
        for name, (axis, pins) in WHOLE.items()
    }
    for schedule, places, axes, microbatches in TYPED:
        each = ranks // places
        spec = Spec(
            places=places,
            mesh=Mesh(axes or ("dp",), (each,)),
            microbatches=microbatches,
            schedule=schedule,
        )
        name = (
            f"{schedule}, {places} places{''.join(f', {a}={each}' for a in axes)}, m={microbatches}"
        )
        makers[name] = lambda spec=spec: typed_pipeline(ask, cluster, spec).plan
    for name, make in makers.items():
        try:
            yield name, make()
        except UserError as reason:
            print(f"  {name}: {reason}", flush=True)


def measure(request: Request, emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """On one rank: by name, the seconds of every step, and the loss of the first."""
    plans = {name: read_plan(path) for name, path in request.plans.items()}
    first = next(iter(plans.values()))
    # All plans are of one model: it is traced once.
    once = cache(lambda hash_: replay.traced_of(first))
    pipeline_replay.traced_of = lambda plan, seed=0: once(plan.graph_hash)
    with join(first.mesh.num_devices, "cpu") as place:
        runs: dict[str, Callable[[], float]] = {}
        for name, plan in plans.items():
            workload = build(lambda plan=plan: replay.workload_of(plan), 0)
            runner = make_runner(lowered(plan, place.rank), workload, place.rank, place.device)
            local: Any = runner.local_batch(workload.batch)
            runs[name] = lambda runner=runner, local=local: runner.step_local(local)
        losses = {name: step() for name, step in runs.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        names = list(runs)
        for number in range(request.rounds + WARM_UP):
            at = number % len(names)
            for name in names[at:] + names[:at]:
                dist.barrier()
                start = time.perf_counter()
                runs[name]()
                times[name].append(time.perf_counter() - start)
    return {"times": {name: taken[WARM_UP:] for name, taken in times.items()}, "losses": losses}


def row_of(model: str, ranks: int, hardware: str, rounds: int) -> dict[str, Any]:
    """The row of one model."""
    ask = Ask(model=model, dtype="float32", num_devices=ranks, **SIZES[model])
    plans = dict(plans_of(ask, load_cluster(hardware, num_devices=ranks), ranks))
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / f"{n}.json") for n, name in enumerate(plans)}
        for name, plan in plans.items():
            write_plan(plan, Path(paths[name]))
        results = launch("pipeline_regret:measure", ranks, Request(paths, rounds))
    times = times_of(results)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    best = min(medians, key=lambda name: medians[name])
    chosen = plans["chosen"]
    return {
        "model": model,
        "chosen": f"{chosen.mesh}, {chosen.ask.microbatches} microbatches"
        + (f", {chosen.pipeline.schedule}" if chosen.pipeline else ""),
        "best": best,
        "regret": max(0.0, ratio_of(times["chosen"], times[best])[0] - 1),
        "median_s": medians,
        "predicted_s": {name: plan.summary["step_time_s"] for name, plan in plans.items()},
        "losses": results[0]["losses"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(SIZES))
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--hardware", default="cpu")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = []
    for model in asked.models.split(","):
        row = row_of(model, asked.ranks, asked.hardware, asked.rounds)
        rows.append(row)
        print(f"{model}: chosen {row['chosen']}; regret {row['regret']:.3f} against {row['best']}")
        for name, seconds in sorted(row["median_s"].items(), key=lambda item: item[1]):
            print(
                f"    {name:32s} {seconds * 1e3:7.1f} ms, predicted "
                f"{row['predicted_s'][name] * 1e3:7.1f} ms",
                flush=True,
            )
        write_results(asked, rows=rows)


if __name__ == "__main__":
    main()
