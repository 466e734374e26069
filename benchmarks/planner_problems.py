"""The planner's own strategy-selection problems: seconds and gap of every `solve` of a planning
process, mesh by mesh.

python benchmarks/planner_problems.py [--models lstm,mlp,cnn,gpt] [--gpus 8,16,32,64] [--also
gpt2-xl:64] [--hardware dgx-h100]
    [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from provenance import provenance

from cost_models.cluster import load_cluster
from planner.search import proposals
from planner.search.search import search
from planner.solver.exact.ilp import solve
from planner.solver.problem.problem import Problem
from planner.solver.problem.solution import Solution
from planner.workload.ask import Ask


def timed(rows: list[dict[str, Any]], model: str, gpus: int) -> Any:
    """`solve`, noting its time, size and proof in `rows`."""

    def run(problem: Problem, **more: Any) -> Solution:
        wall, cpu = time.perf_counter(), time.process_time()
        solution = solve(problem, **more)
        rows.append(
            {
                "model": model,
                "gpus": gpus,
                "limited": problem.limit < float("inf"),
                "nodes": len(problem.costs),
                "pairs": sum(edge.cost.size for edge in problem.edges),
                "status": solution.status,
                "gap": solution.gap,
                "wall_s": round(time.perf_counter() - wall, 3),
                "cpu_s": round(time.process_time() - cpu, 3),
            }
        )
        return solution

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="lstm,mlp,cnn,gpt")
    parser.add_argument("--gpus", default="8,16,32,64")
    parser.add_argument("--also", default="gpt2-xl:64")
    parser.add_argument("--hardware", default="dgx-h100")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    cases = [
        (model, int(n))
        for model in filter(None, asked.models.split(","))
        for n in asked.gpus.split(",")
    ]
    cases += [
        (model, int(n))
        for model, _, n in (one.partition(":") for one in filter(None, asked.also.split(",")))
    ]
    rows: list[dict[str, Any]] = []
    print(
        "model     gpus  problems  nodes     pairs  most wall s  most cpu s  largest gap  proved  load",
        flush=True,
    )
    for model, gpus in cases:
        first = len(rows)
        proposals.solve = timed(rows, model, gpus)
        ask = Ask(model=model, batch=None, seq=None, settings={}, dtype="float32", num_devices=gpus)
        search(ask, load_cluster(asked.hardware, num_devices=gpus))
        own = rows[first:]
        print(
            f"{model:9s} {gpus:4d} {len(own):9d} {max(r['nodes'] for r in own):6d} "
            f"{max(r['pairs'] for r in own):9d} {max(r['wall_s'] for r in own):12.2f} "
            f"{max(r['cpu_s'] for r in own):11.2f} {max(r['gap'] for r in own):12.1e} "
            f"{sum(r['status'] == 'optimal' for r in own):7d} {os.getloadavg()[0]:5.1f}",
            flush=True,
        )
        if asked.out is not None:
            record = {"provenance": provenance("benchmarks/planner_problems.py"), "rows": rows}
            asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
