"""Step time and peak of a plan with recompute, against eager PyTorch with every block under
`torch.utils.checkpoint`: DDP on two ranks, same model, batch and run.

    python benchmarks/recomputing.py [--model gpt] [--share 0.6] [--rounds 20] [--out FILE]

The plan is chosen under a limit of `--share` of what the fastest plan without recompute holds, or of
the eager run's own peak if that is lower: neither holds more than the other. Peaks are what torch's
allocator held at most. Every round has a step of each; the ratio is the median over pairs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from provenance import write_results
from running import ratio_of, times_of
from running_ranks import Request

from cost_models.cluster import load_cluster
from planner.plans.plan import Plan
from planner.plans.plan_file import write_plan
from planner.search.search import search
from planner.workload.ask import Ask
from runtime.launcher import launch

#: A step takes about a second here; activations are most of the memory.
SIZES: dict[str, dict[str, Any]] = {
    "gpt": {
        "batch": 16,
        "seq": 128,
        "settings": {"layers": "8", "width": "256", "heads": "4", "vocab": "2048", "positions": "128"},
    },
    "llama": {
        "batch": 16,
        "seq": 128,
        "settings": {"layers": "8", "width": "256", "heads": "4", "kv_heads": "2", "mlp": "768", "vocab": "2048"},
    },
}  # fmt: skip

RANKS = 2


def held_by(plan: Plan) -> int:
    """Predicted bytes per device at the peak."""
    return int(plan.summary["memory_bytes"]["total"])


def measure(model: str, share: float, hardware: str, rounds: int) -> dict[str, Any]:
    """The row of one model."""
    ask = Ask(model=model, dtype="float32", num_devices=RANKS, memory_headroom=0.0, **SIZES[model])
    cluster = load_cluster(hardware, num_devices=RANKS)
    plain = search(ask, cluster).plan
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.json"
        write_plan(plain, path)
        eager = launch("running_ranks:peaks", RANKS, (str(path), "checkpoint"))
        limit = min(int(share * held_by(plain)), max(eager))
        chosen = search(ask, cluster.with_memory(limit), any_microbatches=True).plan
        paths = {"chosen": str(Path(folder) / "chosen.json"), "plain": str(path)}
        write_plan(chosen, Path(paths["chosen"]))
        results = launch(
            "running_ranks:measure", RANKS, Request(paths, rounds, ("checkpoint", "DDP"))
        )
        ours = launch("running_ranks:peaks", RANKS, (paths["chosen"], "ours"))
    times = times_of(results)
    ratio, quartiles = ratio_of(times["chosen"], times["checkpoint"])
    return {
        "model": model,
        "ratio": ratio,
        "quartiles": quartiles,
        "median_s": {name: statistics.median(taken) for name, taken in times.items()},
        "predicted_s": {
            "chosen": chosen.summary["step_time_s"],
            "plain": plain.summary["step_time_s"],
        },
        "peak_bytes": {"chosen": max(ours), "checkpoint": max(eager)},
        "predicted_bytes": {"chosen": held_by(chosen), "plain": held_by(plain)},
        "limit_bytes": limit,
        "losses": results[0]["losses"],
    }


def line_of(row: dict[str, Any]) -> str:
    """The row as printed."""
    mib = {name: nbytes / 2**20 for name, nbytes in row["peak_bytes"].items()}
    times = ", ".join(f"{name} {seconds * 1e3:.0f}" for name, seconds in row["median_s"].items())
    return (
        f"{row['model']}: {row['ratio']:.3f} of DDP with every block checkpointed ({row['quartiles'][0]:.3f} "
        f"to {row['quartiles'][1]:.3f}); ms: {times} (predicted {row['predicted_s']['chosen'] * 1e3:.0f}); "
        f"peaks: {mib['chosen']:.1f} against {mib['checkpoint']:.1f} MiB, limit "
        f"{row['limit_bytes'] / 2**20:.1f}, without recompute {row['predicted_bytes']['plain'] / 2**20:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="gpt", choices=list(SIZES))
    parser.add_argument("--share", type=float, default=0.6)
    parser.add_argument("--hardware", default="cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    row = measure(asked.model, asked.share, asked.hardware, asked.rounds)
    print(line_of(row))
    write_results(asked, rows=[row])


if __name__ == "__main__":
    main()
