"""Step time of our data-parallel plan against torch's DistributedDataParallel: same model, same two gloo ranks, same run.

    python benchmarks/ddp.py [--models lstm,mlp,cnn,gpt] [--steps 30] [--out FILE]

Both train on the same example batch with `torch.optim.Adam(fused=True)`, one thread a rank, steps in turn A B A B; medians of rank 0.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from provenance import provenance
from torch.nn.parallel import DistributedDataParallel

from cost_models.cluster import load_cluster
from planner.ask import Ask
from planner.layout import Mesh
from planner.pins import Pin
from planner.plan_file import program_of, read_plan, workload_of, write_plan
from planner.search import search
from planner.workload import Workload
from runtime.executor import Executor
from runtime.groups import make_groups
from runtime.launcher import launch
from runtime.parameters import build, cut
from runtime.worker import join

#: Sizes at which a step takes some tens to hundreds of milliseconds on one core.
SIZES: dict[str, dict[str, Any]] = {
    "lstm": {"batch": 128, "seq": 50, "settings": {"vocab": "4000"}},
    "mlp": {"batch": 128, "seq": None, "settings": {"hidden": "1024"}},
    "cnn": {"batch": 64, "seq": None, "settings": {}},
    "gpt": {"batch": 8, "seq": 64, "settings": {"layers": "2", "vocab": "4096"}},
}


@dataclass(frozen=True)
class Request:
    plan: str
    steps: int


def measure(request: Request, emit: Callable[[dict[str, Any]], None]) -> dict[str, list[float]]:
    """On one rank: the seconds of every step of ours and of DDP's, in turn."""
    plan = read_plan(request.plan)
    with join(plan.mesh.num_devices, "cpu") as place:
        program = program_of(plan, rank=place.rank)
        ours = build(lambda: workload_of(plan), 0)
        executor = Executor(program, ours, rank=place.rank, groups=make_groups(program, place.rank), device=place.device)
        local = executor.local_batch(ours.batch)
        theirs = _ddp_step(build(lambda: workload_of(plan), 0), place.rank, place.num_ranks)
        runs: dict[str, Callable[[], float]] = {"ours": lambda: executor.step_local(local), "ddp": theirs}
        times: dict[str, list[float]] = {name: [] for name in runs}
        losses: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(request.steps + 3):
            for name, step in runs.items():
                dist.barrier()
                start = time.perf_counter()
                losses[name].append(step())
                times[name].append(time.perf_counter() - start)
        emit({"losses": {name: values[-1] for name, values in losses.items()}})
    return {name: values[3:] for name, values in times.items()}


def _ddp_step(workload: Workload, rank: int, num_ranks: int) -> Callable[[], float]:
    module = DistributedDataParallel(workload.module)
    optimizer = torch.optim.Adam(module.parameters(), lr=workload.learning_rate, fused=True)
    mesh = Mesh(("dp",), (num_ranks,))
    local = tuple(cut(t, tuple((size,) for size in t.shape), (0,), mesh, rank) for t in workload.batch)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = workload.loss(module(*local[:-1]), local[-1])
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def compare(model: str, steps: int) -> dict[str, Any]:
    """The row of one model."""
    ask = Ask(model=model, dtype="float32", num_devices=2, **SIZES[model])
    found = search(ask, load_cluster("cpu", num_devices=2), mesh=Mesh(("dp",), (2,)), pins=(Pin("*", "ddp"),))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        write_plan(found.plan, path)
        times = launch("ddp:measure", 2, Request(str(path), steps))[0]
    pairs = sorted(a / b for a, b in zip(times["ours"], times["ddp"], strict=True))
    return {
        "model": model, "ours_s": statistics.median(times["ours"]), "ddp_s": statistics.median(times["ddp"]),
        "ratio": statistics.median(pairs), "ratio_quartiles": [pairs[len(pairs) // 4], pairs[3 * len(pairs) // 4]],
        "steps": steps,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="lstm,mlp,cnn,gpt")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = []
    for model in asked.models.split(","):
        rows.append(compare(model, asked.steps))
        row = rows[-1]
        low, high = row["ratio_quartiles"]
        print(
            f"{model:5s} ours {row['ours_s'] * 1e3:7.1f} ms  ddp {row['ddp_s'] * 1e3:7.1f} ms  "
            f"ratio {row['ratio']:.3f} ({low:.3f} to {high:.3f})", flush=True
        )  # fmt: skip
    if asked.out is not None:
        record = {**provenance(f"python benchmarks/ddp.py --steps {asked.steps}"), "rows": rows}
        asked.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
