"""Our split into stages against the planners of the Sailor artefact, on their profiles and rules.

python benchmarks/sailor_plans.py [--only TEXT] [--out FILE.json]

For every experiment of planners.csv: the seconds of our plan by the artefact's simulator (its
`referee.py`, an own implementation), the best of the planners whose plans are comparable, the exact
optimum where one is known, and the seconds that the search took. RULES.md has the rules: profiled
cells only, a tensor group within a node, as many replicas in every stage, batches that divide.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from sailor_costs import Costs, all_costs, chain_of, kinds_of
from sailor_profiles import DATA, ZONE, Network, Profiles, rows

from planner.partition.chain import Split
from planner.partition.split import best_of

__all__ = ["Plan", "plan_for", "shape_of"]


@dataclass(frozen=True)
class Plan:
    """A plan in the words of planners.csv, its seconds as the search has them, and the part of them
    by which a plan of the searched space could be faster."""

    microbatch: int
    layers: str
    stages: str
    seconds: float
    gap: float


def plan_for(model: str, cluster: str, batch: int) -> Plan | None:
    """The fastest plan by the rules, None if none fits."""
    kinds, profiles = kinds_of(cluster), Profiles.of(model)
    network = Network.read({kind.name for kind in kinds}, {kind.zone for kind in kinds})
    costs = list(all_costs(profiles, network, kinds, batch))
    best = best_of([chain_of(own, batch) for own in costs])
    if best is None:
        return None
    number, split = best
    gap = 1 - min(split.bound, split.seconds) / split.seconds
    shape = shape_of(costs[number], split)
    return Plan(costs[number].microbatch, *shape, split.seconds, gap)


def shape_of(costs: Costs, split: Split) -> tuple[str, str]:
    """The layers and the GPUs of the stages, as planners.csv writes them."""
    layers = ";".join(
        f"{s.start}-{s.end - 1}" if s.end > s.start + 1 else str(s.start) for s in split.stages
    )
    stages = []
    for stage in split.stages:
        cells = {cell.kind: cell for cell in costs.ways[stage.way]}
        stages.append(
            "|".join(
                f"{count}*{kind.name}x{kind.per_node}:tp{cells[kind].tp}"
                + ("" if kind.zone == ZONE else f"@{kind.zone}")
                for kind, count in zip(costs.kinds, stage.replicas, strict=True)
                if count
            )
        )
    return layers, ";".join(stages)


def experiments() -> dict[str, list[dict[str, str]]]:
    """The rows of planners.csv by experiment."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows("planners.csv"):
        found.setdefault(row["experiment"], []).append(row)
    return found


def timed(model: str, cluster: str, batch: str) -> dict[str, Any]:
    """The plan, with the wall and CPU seconds of a whole process that searches for it."""
    command = [sys.executable, __file__, "--plan", model, cluster, batch]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        plan = json.loads(process.stdout.read())
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    wall = time.perf_counter() - start
    return {**plan, "wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime}


def judged(model: str, batch: int, plan: dict[str, Any]) -> dict[str, Any]:
    """What the simulator of the artefact says of a plan."""
    spec = importlib.util.spec_from_file_location("referee", DATA / "referee.py")
    assert spec is not None and spec.loader is not None
    referee = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(referee)
    verdict: dict[str, Any] = referee.judge(
        referee.Facts(model, str(DATA)),
        batch,
        plan["microbatch"],
        referee.parse_layers(plan["layers"]),
        referee.parse_stages(plan["stages"]),
    )
    return verdict


def compared(experiment: list[dict[str, str]]) -> dict[str, Any]:
    """Our plan of an experiment beside the best planner and the exact optimum."""
    first = experiment[0]
    plan = timed(first["model"], first["cluster"], first["global_batch"])
    verdict = judged(first["model"], int(first["global_batch"]), plan)
    seconds = verdict["iteration_s"]
    planners = [
        row
        for row in experiment
        if row["comparable"].startswith("yes") and not row["planner"].startswith("own")
    ]
    as_good = [row for row in planners if float(row["referee_time_s"]) <= seconds * (1 + 1e-9)]
    exact = [
        float(row["referee_time_s"])
        for row in experiment
        if row["planner"] == "own exact search, B divisible"
    ]
    return {
        "experiment": first["experiment"],
        "seconds": seconds,
        "fits": verdict["fits"],
        "outside": verdict["outside"],
        "best_of_planners": min(float(row["referee_time_s"]) for row in planners),
        "exact": exact[0] if exact else None,
        "gap": plan["gap"],
        "wall_s": round(plan["wall_s"], 3),
        "cpu_s": round(plan["cpu_s"], 3),
        "as_good_wall_s": min((float(row["search_wall_s"]) for row in as_good), default=None),
        "plan": f"{plan['microbatch']} | {plan['layers']} | {plan['stages']}",
    }


def shown(row: dict[str, Any]) -> str:
    """A row of the table."""
    exact = "-" if row["exact"] is None else f"{row['exact']:.5f}"
    as_good = "-" if row["as_good_wall_s"] is None else f"{row['as_good_wall_s']:.2f}"
    doubts = "; ".join(row["outside"]) or ("" if row["fits"] else "does not fit")
    return (
        f"{row['experiment']:32s} {row['seconds']:9.5f} {row['best_of_planners']:9.5f} {exact:>9s} "
        f"{100 * row['gap']:5.2f} % {row['wall_s']:6.2f} {row['cpu_s']:6.2f} {as_good:>8s} {doubts}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="text that the name of an experiment has")
    parser.add_argument("--plan", nargs=3, metavar=("MODEL", "CLUSTER", "BATCH"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.plan is not None:
        model, cluster, batch = asked.plan
        plan = plan_for(model, cluster, int(batch))
        print(json.dumps(None if plan is None else dataclasses.asdict(plan)))
        return
    print(
        f"{'':32s} {'ours':>9s} {'planners':>9s} {'exact':>9s} {'gap':>7s} {'wall s':>6s} {'cpu s':>6s} as good"
    )
    table = []
    for name, experiment in experiments().items():
        if asked.only in name:
            table.append(compared(experiment))
            print(shown(table[-1]), flush=True)
    if asked.out is not None:
        from provenance import write_results

        write_results(asked, rows=table)


if __name__ == "__main__":
    main()
