"""Step time of pipelines against `torch.distributed.pipelining`: the same blocks in every stage, the
same schedule, microbatches, ranks and run, in float32.

    python benchmarks/pipelining.py [--schedules 1f1b,interleaved,zbv] [--ranks 4] [--rounds 15] [--out FILE]

Every round has one step of each, beginning with another; a step lasts until its last rank is done.
The ratio is the median over pairs of steps. `cpu` is the processor time of all ranks together: with
fewer cores than ranks it says more than the bubble does. Losses of the first step must be equal.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pipelining_ranks import SCHEDULES, Request
from provenance import write_results
from running import ratio_of, times_of

from cost_models.cluster import load_cluster
from cost_models.errors import RunFailed
from planner.graph.layout import Mesh
from planner.plans.plan import Plan, SolverRecord
from planner.plans.plan_file import write_plan
from planner.search.budget import Budget
from planner.search.pipeline_planned import plan_of_pipeline
from planner.search.pipelines import Pipelines, Spec
from planner.trace.trace import trace
from planner.workload.ask import Ask, build
from runtime.launcher import launch

LAYERS, BATCH, SEQ, MICROBATCHES = 12, 16, 64, 8

#: A step takes about a second here. The head is not tied: torch's pipelines have no shared
#: parameters.
SETTINGS = {
    "layers": str(LAYERS),
    "width": "256",
    "heads": "8",
    "vocab": "2048",
    "positions": str(SEQ),
    "tied": "false",
}

#: Stages of a rank.
CHUNKS = {"interleaved": 2, "zbv": 2}


def planned(name: str, ranks: int, hardware: str) -> tuple[Plan, list[int]]:
    """A pipeline of the schedule, and the blocks at which its stages begin."""
    ask = Ask(
        model="gpt",
        dtype="float32",
        num_devices=ranks,
        batch=BATCH,
        seq=SEQ,
        settings=SETTINGS,
    )
    cluster = load_cluster(hardware, num_devices=ranks)
    began, traced = time.perf_counter(), trace(lambda: build(ask), ask.model)
    made = Pipelines(ask, cluster, (), Budget.unlimited(), traced)
    chunks = CHUNKS.get(name, 1)
    blocks = [LAYERS * stage // (ranks * chunks) for stage in range(ranks * chunks)]
    units = [unit.block for unit in made.model(MICROBATCHES).units]
    begins = [0, *(units.index(f"h.{block}") for block in blocks[1:])]
    spec = Spec(
        places=ranks,
        mesh=Mesh(("dp",), (1,)),
        microbatches=MICROBATCHES,
        schedule=name,
        chunks=CHUNKS.get(name, 0),
    )
    best = made.candidate(spec, begins)
    proof = SolverRecord(bound=0.0, gap=1.0, num_meshes=1, time_s=0.0)
    return plan_of_pipeline(best, cluster, traced.workload, proof, (), began).plan, blocks


def row_of(name: str, plan: Plan, results: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of one schedule."""
    ours, theirs = f"ours {name}", f"torch {name}"
    losses = results[0]["losses"]
    if abs(losses[ours] - losses[theirs]) > 1e-5 * abs(losses[ours]):
        raise RunFailed(
            f"{name}: the first loss is {losses[ours]:.8g}, that of torch's pipeline {losses[theirs]:.8g}"
        )
    times = times_of(results)
    ratio, quartiles = ratio_of(times[ours], times[theirs])
    busy = {
        run: statistics.median(map(sum, zip(*(r["busy"][run] for r in results), strict=True)))
        for run in (ours, theirs)
    }
    return {
        "schedule": name,
        "ratio": ratio,
        "quartiles": quartiles,
        "ours_s": statistics.median(times[ours]),
        "torch_s": statistics.median(times[theirs]),
        "ours_cpu_s": busy[ours],
        "torch_cpu_s": busy[theirs],
        "predicted_s": plan.summary["step_time_s"],
        "losses": [losses[ours], losses[theirs]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schedules", default="1f1b,interleaved,zbv")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--hardware", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    names = asked.schedules.split(",")
    assert set(names) <= set(SCHEDULES), names
    made = {name: planned(name, asked.ranks, asked.hardware) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / f"{name}.json") for name in names}
        for name, (plan, _) in made.items():
            write_plan(plan, Path(paths[name]))
        blocks = {name: found for name, (_, found) in made.items()}
        request = Request(paths, blocks, asked.rounds)
        results = launch("pipelining_ranks:measure", asked.ranks, request)
    rows = [row_of(name, plan, results) for name, (plan, _) in made.items()]
    for row in rows:
        print(
            f"{row['schedule']}: {row['ratio']:.3f} of torch's step ({row['quartiles'][0]:.3f} to "
            f"{row['quartiles'][1]:.3f}); {row['ours_s'] * 1e3:.0f} and {row['torch_s'] * 1e3:.0f} ms, "
            f"cpu {row['ours_cpu_s'] * 1e3:.0f} and {row['torch_cpu_s'] * 1e3:.0f} ms, "
            f"predicted {row['predicted_s'] * 1e3:.0f} ms"
        )
    write_results(asked, rows=rows)


if __name__ == "__main__":
    main()
