"""Predicted peak memory against the allocator's, of plans that run here on two ranks.

    python benchmarks/memory.py [--families mlp,gpt,...] [--strategies ddp,zero3,tensor,chosen]
        [--recompute none,selective,full,chosen] [--microbatches 1,4]
        [--precisions fp32,bf16-master,...] [--times 4] [--out FILE]

Every family is planned for two CPU ranks under each strategy, in each precision, recomputing in each
way and in so many microbatches, and run: two steps, and one that is recorded, whose peak is what torch's allocator
held at most (`planner.torch_private.allocator.allocations`). A row a plan: predicted, measured,
predicted / measured - 1. `chosen` recompute plans under a memory limit of a share of what the same plan
holds without it: the least of `LIMITS` under which there is a plan. `--times` multiplies the batch.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from provenance import write_results

from cost_models.cluster import load_cluster
from cost_models.errors import DoesNotFit, NoPlan, NotTraceable
from planner.graph.layout import Mesh
from planner.plans.plan import Plan
from planner.plans.plan_file import read_plan, write_plan
from planner.plans.replay import program_of, workload_of
from planner.predict.predict import memory_by_category
from planner.search.search import search
from planner.strategy.pins import Pin, recompute_pins
from planner.workload.ask import Ask
from planner.workload.precision import precision_of
from runtime.executor import Executor
from runtime.groups import make_groups
from runtime.launcher import Emit, launch
from runtime.parameters import build
from runtime.plain_trainer import in_dtypes
from runtime.worker import join

_TEXT = {"layers": 2, "width": 256, "heads": 4, "vocab": 4096}
_RECURRENT = {"vocab": 2000, "embed": 128, "hidden": 256, "layers": 2, "seq": 32}

#: The batch and the sizes of each family: a step of a tenth of a second to a second here, of 5 to
#: 100 MiB.
FAMILIES: dict[str, tuple[int, dict[str, int]]] = {
    "mlp": (64, {"inputs": 512, "hidden": 1024, "layers": 4, "outputs": 256}),
    "cnn": (16, {}),
    "resnet": (8, {"image": 64, "classes": 100}),
    "unet": (4, {"image": 64}),
    "lstm": (32, _RECURRENT),
    "gru": (32, _RECURRENT),
    "seq2seq-lstm": (32, {**_RECURRENT, "seq": 24}),
    "gpt": (8, {**_TEXT, "positions": 128, "seq": 128}),
    "bert": (8, {**_TEXT, "mlp": 1024, "positions": 128, "seq": 128}),
    "llama": (8, {**_TEXT, "kv_heads": 2, "mlp": 512, "seq": 128}),
    "t5": (8, {**_TEXT, "head_dim": 64, "mlp": 512, "seq": 64, "target_seq": 64}),
    "moe": (8, {**_TEXT, "vocab": 2048, "kv_heads": 2, "mlp": 512, "experts": 4, "seq": 64}),
    "vit": (
        8,
        {
            "layers": 2,
            "width": 256,
            "heads": 4,
            "mlp": 512,
            "image": 64,
            "patch": 8,
            "classes": 100,
        },
    ),
    "dlrm": (256, {}),
}

#: The memory limits of `chosen` recompute, as shares of what the plan holds without any.
LIMITS = (0.7, 0.8, 0.9, 0.95)

#: Strategy, way of recomputing, number of microbatches, precision.
Case = tuple[str, str, int, str]

STRATEGIES: dict[str, tuple[Mesh | None, tuple[Pin, ...]]] = {
    "ddp": (Mesh(("dp",), (2,)), (Pin("*", "ddp"),)),
    "zero3": (Mesh(("dp",), (2,)), (Pin("*", "zero3"),)),
    "tensor": (Mesh(("tp",), (2,)), ()),
    "chosen": (None, ()),
}


def plan(family: str, case: Case, path: Path, times: int) -> bool:
    """Plans a family for two CPU ranks; whether it has such a plan."""
    batch, sizes = FAMILIES[family]
    strategy, recompute, microbatches, precision = case
    mesh, pins = STRATEGIES[strategy]
    ask = Ask(
        model=family,
        batch=batch * times,
        seq=None,
        settings={name: str(size) for name, size in sizes.items()},
        num_devices=2,
        microbatches=microbatches,
        **precision_of(precision).fields(),
    )
    cluster = load_cluster("cpu", num_devices=2)
    pins = (*recompute_pins(recompute), *pins)
    try:
        found = search(ask, cluster, mesh=mesh, pins=pins).plan
        if recompute == "chosen":
            found = _chosen(ask, found, pins)
    except (NoPlan, NotTraceable) as error:
        print(f"{family}, {case}: left out: {error}")
        return False
    write_plan(found, path)
    return True


def _chosen(ask: Ask, free: Plan, pins: tuple[Pin, ...]) -> Plan:
    """The plan within the least of `LIMITS` within which there is one, on the same mesh. Raises
    NoPlan if none fits or nothing runs again in it."""
    cluster, held = load_cluster("cpu", num_devices=2), free.summary["memory_bytes"]["total"]
    ask = replace(ask, memory_headroom=0.0)
    for limit in LIMITS:
        try:
            plan = search(ask, cluster.with_memory(limit * held), mesh=free.mesh, pins=pins).plan
        except DoesNotFit:
            continue
        if plan.summary.get("recomputed"):
            return plan
    raise NoPlan(f"nothing runs again in a plan within {LIMITS} of {held} bytes")


def run_rank(paths: list[str], emit: Emit) -> list[tuple[int, int]]:
    """Of every plan: the predicted peak of this rank and the allocator's, in bytes."""
    found = []
    with join(2) as place:
        for path in paths:
            read = read_plan(path)
            program = program_of(read, rank=place.rank)
            workload = in_dtypes(build(lambda read=read: workload_of(read), 0), program)  # type: ignore[misc]
            executor = Executor(
                program,
                workload,
                rank=place.rank,
                groups=make_groups(program, place.rank),
                device=place.device,
            )
            for _ in range(2):
                executor.step(workload.batch)
            executor.recorded_step(workload.batch)
            found.append((sum(memory_by_category(program).values()), executor.peak_memory_bytes))
    return found


def measure(family: str, cases: list[Case], times: int) -> list[dict[str, Any]]:
    """The rows of a family: of each case, the rank that holds most."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {case: Path(folder) / f"{number}.json" for number, case in enumerate(cases)}
        paths = {case: path for case, path in paths.items() if plan(family, case, path, times)}
        if not paths:
            return []
        ranks = launch("memory:run_rank", 2, [str(path) for path in paths.values()])
    rows = []
    for case, pairs in zip(paths, zip(*ranks, strict=True), strict=True):
        strategy, recompute, microbatches, precision = case
        predicted, measured = max(pairs, key=lambda pair: pair[1])
        rows.append(
            {
                "family": family,
                "strategy": strategy,
                "recompute": recompute,
                "microbatches": microbatches,
                "precision": precision,
                "predicted_bytes": predicted,
                "measured_bytes": measured,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--recompute", default="none")
    parser.add_argument("--microbatches", default="1")
    parser.add_argument("--precisions", default="fp32")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    cases = [
        (strategy, recompute, int(microbatches), precision)
        for precision in asked.precisions.split(",")
        for strategy in asked.strategies.split(",")
        for recompute in asked.recompute.split(",")
        for microbatches in asked.microbatches.split(",")
    ]
    rows: list[dict[str, Any]] = []
    for family in asked.families.split(","):
        for row in measure(family, cases, asked.times):
            row["error"] = row["predicted_bytes"] / row["measured_bytes"] - 1
            rows.append(row)
            sizes = [row[f"{kind}_bytes"] / 2**20 for kind in ("predicted", "measured")]
            print(
                f"{family:13s} {row['strategy']:7s} {row['recompute']:9s} "
                f"{row['precision']:11s} x{row['microbatches']} predicted {sizes[0]:7.2f} of {sizes[1]:7.2f} MiB "
                f"{row['error']:+.2%}",
                flush=True,
            )
    errors = [row["error"] for row in rows]
    print(
        f"{len(errors)} plans: {min(errors):+.2%} to {max(errors):+.2%}, mean of sizes "
        f"{sum(map(abs, errors)) / len(errors):.2%}"
    )
    write_results(asked, rows=rows)


if __name__ == "__main__":
    main()
