"""Step time of this checkout against another's: the same model in one process of each, steps in
turn, on one core.

    python benchmarks/against.py OTHER [--model llama] [--precision bf16-mixed] [--steps 30] [--out FILE]

OTHER is a checkout of this repository at another commit. Each process plans and trains with its own
code; of the two, only the one whose turn it is runs. The ratio is the median of those of
neighbouring steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parents[1]

#: Llama-3-8B's proportions, an eighth as wide: 4 query heads on a key head, 3.5 times the width
#: inside.
SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        "batch": 4,
        "seq": 128,
        "settings": {
            "layers": "2",
            "width": "512",
            "heads": "8",
            "kv_heads": "2",
            "mlp": "1792",
            "vocab": "4096",
        },
    },
    "gpt": {"batch": 8, "seq": 64, "settings": {"layers": "2", "vocab": "4096"}},
}


def _module(now: str, before: str) -> ModuleType:
    """A module by its name, or by that which it had before the files lay in rooms."""
    import planner

    tree = Path(planner.__path__[0]).parent
    there = tree.joinpath(*now.split(".")).with_suffix(".py").is_file()
    return import_module(now if there else before)


def serve(model: str, precision: str) -> None:
    """Plans and builds, then makes a step for every line that comes in, and says how long it
    took and what the loss was."""
    from cost_models.cluster import load_cluster
    from runtime.executor import Executor
    from runtime.heap import keep_freed_memory
    from runtime.parameters import build

    replay = _module("planner.plans.replay", "planner.plan_file")
    asking = _module("planner.workload.ask", "planner.ask")
    search = _module("planner.search.search", "planner.search").search
    keep_freed_memory()
    known = _module("planner.workload.precision", asking.__name__)
    if hasattr(known, "precision_of"):
        formats = known.precision_of(precision).fields()
    else:
        formats = dict(zip(("dtype", "compute"), asking.dtypes_of(precision), strict=True))
    plan = search(
        asking.Ask(model=model, **formats, num_devices=1, **SIZES[model]),
        load_cluster("cpu", num_devices=1),
    ).plan
    workload = build(lambda: replay.workload_of(plan), 0)
    executor = Executor(replay.program_of(plan), workload)
    local = executor.local_batch(workload.batch)
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = executor.step_local(local)
        print(json.dumps([time.perf_counter() - start, loss]), flush=True)


def _start(tree: Path, model: str, precision: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--serve",
        "--model",
        model,
        "--precision",
        precision,
    ]
    settings = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=tree, env=settings, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def _step(process: subprocess.Popen[str]) -> list[float]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("step\n")
    process.stdin.flush()
    found: list[float] = json.loads(process.stdout.readline())
    return found


def measure(other: Path, model: str, precision: str, steps: int) -> dict[str, Any]:
    """Seconds of every step of both, and their last losses."""
    processes = {"ours": _start(HERE, model, precision), "theirs": _start(other, model, precision)}
    found: dict[str, list[list[float]]] = {name: [] for name in processes}
    for _ in range(steps + 3):
        for name, process in processes.items():
            found[name].append(_step(process))
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    times = {name: [seconds for seconds, _ in steps[3:]] for name, steps in found.items()}
    ratios = [a / b for a, b in zip(times["ours"], times["theirs"], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "losses": {name: steps[-1][1] for name, steps in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", nargs="?", type=Path)
    parser.add_argument("--model", default="llama", choices=list(SIZES))
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.model, asked.precision)
        return
    if asked.other is None:
        parser.error("name the other checkout")
    from provenance import provenance

    found = measure(asked.other.resolve(), asked.model, asked.precision, asked.steps)
    print(
        f"{asked.model} {asked.precision}: {found['ratio']:.3f} x, medians {found['seconds']}, losses {found['losses']}"
    )
    if asked.out is not None:
        asked.out.write_text(
            json.dumps(
                {
                    **provenance(" ".join(sys.argv)),
                    "model": asked.model,
                    "precision": asked.precision,
                    **found,
                },
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
