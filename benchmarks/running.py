"""Step time of the plan that is chosen, and of ours that are pinned, against torch's DDP and FSDP2:
same model, ranks and run.

    python benchmarks/running.py [--cases lstm@2,gpt@4] [--hardware cpu] [--rounds 30] [--out FILE]
    plan calibrate && python benchmarks/running.py --hardware FILE   # the path that `plan calibrate` prints

Every round has one step of each, in rotating order; a step lasts until its last rank is done; the
figures are medians over rounds, the ratio that of the chosen plan to the faster baseline, pair by
pair. The regret is how much slower the chosen plan is than the best of our own that were run. A
baseline whose first loss is not ours is refused, since it would train another model.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from provenance import write_results
from running_ranks import Request

from cost_models.cluster import load_cluster
from cost_models.errors import NoPlan, RunFailed
from planner.graph.layout import Mesh
from planner.plans.plan import Plan
from planner.plans.plan_file import write_plan
from planner.plans.replay import program_of
from planner.search.search import search
from planner.strategy.pins import Pin
from planner.workload.ask import Ask
from runtime.launcher import launch

RIVALS = ("DDP", "FSDP2")

CASES = "lstm@2,gru@2,gpt@2,bert@2,t5@2,llama@2,resnet@2,gpt@4,lstm@4"

#: Sizes at which a step takes some tens to hundreds of milliseconds on two cores; the batch is that
#: of all ranks.
SIZES: dict[str, dict[str, Any]] = {
    "lstm": {"batch": 256, "seq": 50, "settings": {"vocab": "4000"}},
    "gru": {"batch": 256, "seq": 50, "settings": {"vocab": "4000"}},
    "mlp": {"batch": 256, "seq": None, "settings": {"hidden": "1024"}},
    "cnn": {"batch": 128, "seq": None, "settings": {}},
    "gpt": {"batch": 16, "seq": 64, "settings": {"layers": "2", "vocab": "4096"}},
    "bert": {"batch": 8, "seq": 128, "settings": {"layers": "2"}},
    "t5": {"batch": 8, "seq": None, "settings": {}},
    "llama": {"batch": 8, "seq": 64, "settings": {}},
    "resnet": {
        "batch": 64,
        "seq": None,
        "settings": {"batch_norm": "false"},
    },  # DDP's batch norm is of each rank
}

#: Baselines take the mean over each rank's part: where parts count unlike numbers of targets, or
#: batch norm sees a part, their losses are another mean of like size.
NEAR = 0.05


def plans_of(model: str, ranks: int, hardware: str) -> Iterator[tuple[str, Plan]]:
    """The chosen plan, then those that are pinned; one that would run the same program as one
    before it is left out."""
    ask = Ask(model=model, dtype="float32", num_devices=ranks, **SIZES[model])
    pinned: dict[str, tuple[Mesh | None, tuple[Pin, ...]]] = {
        "chosen": (None, ()),
        "ddp": (Mesh(("dp",), (ranks,)), (Pin("*", "ddp"),)),
        "zero3": (Mesh(("dp",), (ranks,)), (Pin("*", "zero3"),)),
        "tensor": (Mesh(("tp",), (ranks,)), ()),
    }
    seen: list[Any] = []
    for name, (mesh, pins) in pinned.items():
        try:
            plan = search(ask, load_cluster(hardware, num_devices=ranks), mesh=mesh, pins=pins).plan
        except NoPlan as reason:
            print(f"  {name}: {reason}", flush=True)
            continue
        instructions = program_of(plan).instructions
        if instructions not in seen:
            seen.append(instructions)
            yield name, plan


def row_of(model: str, ranks: int, hardware: str, rounds: int) -> dict[str, Any]:
    """The row of one model."""
    plans = dict(plans_of(model, ranks, hardware))
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / f"{name}.json") for name in plans}
        for name, plan in plans.items():
            write_plan(plan, Path(paths[name]))
        results = launch("running_ranks:measure", ranks, Request(paths, rounds, RIVALS))
    check_losses(results[0]["losses"])
    times = times_of(results)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    rival = min(RIVALS, key=lambda name: medians[name])
    best = min(plans, key=lambda name: medians[name])
    return {
        "model": model,
        "ranks": ranks,
        "mesh": str(plans["chosen"].mesh),
        "median_s": medians,
        "against": rival,
        "predicted_s": {name: plan.summary["step_time_s"] for name, plan in plans.items()},
        **{
            key: value
            for name in RIVALS
            for key, value in _ratio(times["chosen"], times[name], name).items()
        },
        "best": best,
        "regret": max(0.0, ratio_of(times["chosen"], times[best])[0] - 1),
        "losses": results[0]["losses"],
        "rounds": rounds,
    }


def check_losses(losses: Mapping[str, float]) -> None:
    """Raises RunFailed for a first loss that is not the chosen plan's."""
    for name, loss in losses.items():
        if abs(loss - losses["chosen"]) > NEAR * abs(losses["chosen"]):
            raise RunFailed(
                f"the first loss of {name} is {loss:.6g} and that of the chosen plan {losses['chosen']:.6g}"
            )


def times_of(results: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The seconds of every step, by name, from the results of all ranks: a step lasts until its last
    rank is done."""
    return {
        name: [max(step) for step in zip(*(r["times"][name] for r in results), strict=True)]
        for name in results[0]["times"]
    }


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, list[float]]:
    """The median of ours / theirs over pairs of steps, and its quartiles."""
    pairs = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return statistics.median(pairs), [pairs[len(pairs) // 4], pairs[3 * len(pairs) // 4]]


def _ratio(ours: Sequence[float], theirs: Sequence[float], name: str) -> dict[str, Any]:
    median, quartiles = ratio_of(ours, theirs)
    return {f"ratio_{name}": median, f"ratio_{name}_quartiles": quartiles}


def line_of(row: Mapping[str, Any]) -> str:
    """The row as printed: the ratio, then of each run its measured and (ours) predicted
    milliseconds."""
    name, (low, high) = row["against"], row[f"ratio_{row['against']}_quartiles"]
    predicted = row["predicted_s"]
    runs = ", ".join(
        f"{run} {seconds * 1e3:.1f}"
        + (f" (predicted {predicted[run] * 1e3:.1f})" if run in predicted else "")
        for run, seconds in row["median_s"].items()
    )
    return (
        f"{row['model']:6s} {row['ranks']} ranks, {row['mesh']}: {row[f'ratio_{name}']:.3f} of "
        f"{name} ({low:.3f} to {high:.3f}), regret {row['regret']:.1%} ({row['best']}); ms: {runs}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=CASES, help="MODEL@RANKS, separated by commas")
    parser.add_argument("--hardware", default="cpu", help="a cluster's name or a hardware file")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = []
    for case in asked.cases.split(","):
        model, _, ranks = case.partition("@")
        rows.append(row_of(model, int(ranks or 2), asked.hardware, asked.rounds))
        print(line_of(rows[-1]), flush=True)
    ratios = [row[f"ratio_{row['against']}"] for row in rows]
    worst = max(row["regret"] for row in rows)
    print(
        f"mean ratio {statistics.mean(ratios):.3f}, largest {max(ratios):.3f}, largest regret {worst:.1%}"
    )
    write_results(asked, rows=rows)


if __name__ == "__main__":
    main()
