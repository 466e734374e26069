"""Loss and every gradient of plans with microbatches and recompute, against plain torch on the
whole batch in one process, in float64.

    python benchmarks/equality.py [--families gpt,lstm] [--ranks 1,2,4] [--microbatches 1,2,4,5]
        [--recompute none,selective,full,chosen,across] [--strategies ddp,zero1,zero3,tensor,chosen] [--out FILE]

A row a family and number of ranks: how many plans ran, and the worst relative error of the loss and
of a gradient (the largest difference in a tensor over its largest value), with the plan that has
it. Combinations that are no plan are listed with the reason. `chosen` recompute plans under a
memory limit of a share of what the same plan holds without it, the least of `LIMITS` that it fits.
`across` makes all ops of layers run again, what goes from layer to layer among them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from provenance import write_results

from cost_models.cluster import load_cluster
from cost_models.errors import DoesNotFit, UserError
from planner.graph.layout import Mesh
from planner.plans.plan import Plan
from planner.plans.plan_file import read_plan, write_plan
from planner.plans.replay import model_of, program_of, workload_of
from planner.search.search import search
from planner.strategy.pins import Pin, recompute_pins
from planner.strategy.strategies import ACROSS
from planner.workload.ask import Ask
from runtime.executor import Executor, gather_parameters
from runtime.groups import make_groups
from runtime.launcher import Emit, launch
from runtime.parameters import build
from runtime.plain_trainer import in_dtypes
from runtime.reference import reference_run
from runtime.verify import compare
from runtime.worker import join

BATCH = 20

#: The memory limits of `chosen` recompute, as shares of what the plan holds without any.
LIMITS = (0.7, 0.8, 0.9)

_TEXT = {"layers": 2, "width": 32, "heads": 4, "vocab": 96}
_RECURRENT = {"vocab": 64, "embed": 16, "hidden": 16, "layers": 2, "seq": 6}

#: Small sizes; what looks across samples (batch norm) is off.
FAMILIES: dict[str, dict[str, int | str]] = {
    "mlp": {"inputs": 32, "hidden": 32, "layers": 4, "outputs": 16},
    "cnn": {"image": 16},
    "resnet": {"image": 32, "classes": 10, "batch_norm": "false"},
    "unet": {"image": 32},
    "lstm": _RECURRENT,
    "rnn": _RECURRENT,
    "gru": _RECURRENT,
    "seq2seq-lstm": _RECURRENT,
    "gpt": {**_TEXT, "positions": 16, "seq": 16},
    "bert": {**_TEXT, "mlp": 64, "positions": 16, "seq": 16},
    "llama": {**_TEXT, "kv_heads": 2, "mlp": 64, "seq": 16},
    "t5": {**_TEXT, "head_dim": 8, "mlp": 64, "seq": 8, "target_seq": 8},
    "moe": {**_TEXT, "kv_heads": 2, "mlp": 64, "experts": 4, "seq": 8},
    "vit": {
        "layers": 2,
        "width": 32,
        "heads": 4,
        "mlp": 64,
        "image": 16,
        "patch": 4,
        "classes": 10,
    },
    "dlrm": {"rows": 50},
}


def _strategy(name: str, ranks: int) -> tuple[Mesh | None, tuple[Pin, ...]]:
    data, tensor = Mesh(("dp",), (ranks,)), Mesh(("tp",), (ranks,))
    return {
        "ddp": (data, (Pin("*", "ddp"),)),
        "zero1": (data, (Pin("*", "zero1"),)),
        "zero3": (data, (Pin("*", "zero3"),)),
        "tensor": (tensor, ()),
        "chosen": (None, ()),
    }[name]


@dataclass(frozen=True, kw_only=True)
class Combination:
    """What a plan is asked to do."""

    strategy: str
    microbatches: int
    recompute: str

    def __str__(self) -> str:
        return f"{self.strategy}, {self.microbatches} microbatches, recompute {self.recompute}"


def planned(family: str, ranks: int, asked: Combination) -> Plan:
    """The plan of a combination. Raises UserError if there is none."""
    settings = {name: str(size) for name, size in FAMILIES[family].items()}
    ask = Ask(
        model=family,
        batch=BATCH,
        seq=None,
        settings=settings,
        dtype="float64",
        num_devices=ranks,
        microbatches=asked.microbatches,
        memory_headroom=0.0,
    )
    cluster = load_cluster("cpu", num_devices=ranks)
    mesh, pins = _strategy(asked.strategy, ranks)
    way = "none" if asked.recompute == "across" else asked.recompute
    pins = (*recompute_pins(way), *pins)
    plan = search(ask, cluster, mesh=mesh, pins=pins).plan
    if asked.recompute == "across":
        return _across(plan)
    if asked.recompute == "chosen":
        held = plan.summary["memory_bytes"]["total"]
        for limit in LIMITS[:-1]:
            with contextlib.suppress(DoesNotFit):
                return search(ask, cluster.with_memory(limit * held), mesh=mesh, pins=pins).plan
        return search(ask, cluster.with_memory(LIMITS[-1] * held), mesh=mesh, pins=pins).plan
    return plan


def _across(plan: Plan) -> Plan:
    """The plan in which all ops of layers run again, across layers."""
    model = model_of(plan)
    again = (n.index for n in model.graph.nodes if model.may_have_mode(n) and model.blocks[n.index])
    return replace(plan, modes=dict.fromkeys(again, ACROSS))


def run_rank(paths: list[str], emit: Emit) -> list[dict[str, Any]] | None:
    """Of every plan: the errors of its first loss and gradients; on rank 0."""
    found: list[dict[str, Any]] = []
    reference = None
    plans = [read_plan(path) for path in paths]
    with join(plans[0].mesh.num_devices, "cpu") as place:
        for plan in plans:
            make = lambda plan=plan: workload_of(plan)  # noqa: E731
            program = program_of(plan, rank=place.rank)
            workload = in_dtypes(build(make, 0), program)
            executor = Executor(
                program,
                workload,
                rank=place.rank,
                groups=make_groups(program, place.rank),
                device=place.device,
                keep_gradients=True,
            )
            loss = executor.step(workload.batch)
            gradients = gather_parameters(executor, executor.gradients)
            parameters = gather_parameters(executor)
            if place.rank:
                continue
            reference = reference or reference_run(make, program, seed=0, num_steps=1)
            apart = compare([loss], gradients, parameters, reference)
            found.append({"loss": apart.loss_error, "gradient": apart.gradient_error})
    return found if place.rank == 0 else None


def combinations(asked: argparse.Namespace) -> Iterator[Combination]:
    """All combinations that were asked for."""
    for strategy, microbatches, recompute in itertools.product(
        asked.strategies.split(","),
        map(int, asked.microbatches.split(",")),
        asked.recompute.split(","),
    ):
        yield Combination(strategy=strategy, microbatches=microbatches, recompute=recompute)


def measure(family: str, ranks: int, asked: argparse.Namespace) -> dict[str, Any]:
    """The row of one family on a number of ranks."""
    ran: list[Combination] = []
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths: list[str] = []
        for one in combinations(asked):
            try:
                plan = planned(family, ranks, one)
            except UserError as reason:
                refused[str(one)] = str(reason)
                continue
            ran.append(one)
            paths.append(str(Path(folder) / f"{len(ran)}.json"))
            write_plan(plan, Path(paths[-1]))
        errors = launch("equality:run_rank", ranks, paths)[0] if paths else []
    row: dict[str, Any] = {"family": family, "ranks": ranks, "plans": len(ran), "refused": refused}
    for kind in ("loss", "gradient"):
        worst = max(range(len(ran)), key=lambda i: errors[i][kind], default=None)
        if worst is not None:
            row[kind], row[f"worst_{kind}"] = errors[worst][kind], str(ran[worst])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--microbatches", default="1,2,4,5")
    parser.add_argument("--recompute", default="none,selective,full,chosen")
    parser.add_argument("--strategies", default="ddp,zero1,zero3,tensor,chosen")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = []
    for family, ranks in itertools.product(
        asked.families.split(","), map(int, asked.ranks.split(","))
    ):
        row = measure(family, ranks, asked)
        rows.append(row)
        print(
            f"{family:13s} {ranks} ranks: {row['plans']} plans, loss {row.get('loss', math.nan):.1e}, "
            f"gradient {row.get('gradient', math.nan):.1e} ({row.get('worst_gradient', '')})",
            flush=True,
        )
        for one, reason in row["refused"].items():
            print(f"    {one}: {reason}", flush=True)
    write_results(asked, rows=rows)


if __name__ == "__main__":
    main()
