"""Loss and every gradient of pipelines, against plain torch on the whole batch in one process, in
float64; and what each rank held at most, against what is predicted.

    python benchmarks/pipelines_equality.py [--families gpt,lstm] [--ranks 2,4,8]
        [--schedules gpipe,1f1b,...] [--layouts alone,data,...] [--out FILE]

A row a family and number of ranks: how many plans ran, and the worst relative error of the loss and
of a gradient (the largest difference in a tensor over its largest value), with the plan that has
it; the least and largest ratio of predicted and allocated bytes of a place. Combinations that are
no plan are listed with the reason. `three` has stages, data and tensors split at once.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from equality import FAMILIES
from provenance import write_results

from cost_models.cluster import load_cluster
from cost_models.errors import UserError
from planner.graph.layout import Mesh
from planner.plans import pipeline_replay
from planner.plans.plan import Plan, SolverRecord
from planner.plans.plan_file import read_plan, write_plan
from planner.plans.replay import traced_of, workload_of
from planner.schedules.registry import SCHEDULES
from planner.search.budget import Budget
from planner.search.pipeline_planned import plan_of_pipeline
from planner.search.pipelines import Pipelines, Spec
from planner.strategy.pins import Pin, recompute_pins
from planner.trace.trace import trace
from planner.trace.traced import Traced
from planner.workload.ask import Ask, build
from runtime.launcher import Emit, launch
from runtime.parameters import build as built
from runtime.pipeline import PipelineExecutor
from runtime.plain_trainer import in_dtypes
from runtime.reference import reference_run
from runtime.runner import lowered
from runtime.verify import compare
from runtime.worker import join

MICROBATCHES = 4

#: Of a place; `alone` has every rank in a place of its own.
LAYOUTS = ("alone", "data", "tensor", "three", "zero1", "zero3", "recompute")


@dataclass(frozen=True, kw_only=True)
class Combination:
    """What a plan is asked to do."""

    schedule: str
    layout: str

    def __str__(self) -> str:
        return f"{self.schedule}, {self.layout}"


def spec_of(asked: Combination, ranks: int) -> tuple[Spec, tuple[Pin, ...]] | None:
    """The pipeline of a combination, with its pins; None if so many ranks cannot have it."""
    each = 1 if asked.layout in ("alone", "recompute") else 4 if asked.layout == "three" else 2
    if ranks // each < 2:
        return None
    names = {"tensor": ("tp",), "three": ("dp", "tp")}.get(asked.layout, ("dp",))
    sizes = (2, 2) if asked.layout == "three" else (each,)
    pins: tuple[Pin, ...] = ()
    if asked.layout in ("data", "zero1", "zero3"):
        pins = (Pin("*", "ddp" if asked.layout == "data" else asked.layout),)
    if asked.layout == "recompute":
        pins = recompute_pins("full")
    places = ranks // each
    spec = Spec(
        places=places,
        mesh=Mesh(names, sizes),
        microbatches=max(MICROBATCHES, 2 * places),
        schedule=asked.schedule,
    )
    return spec, pins


@cache
def traced(family: str) -> tuple[Ask, Traced]:
    """A family's trace, which all plans share."""
    settings = {name: str(size) for name, size in FAMILIES[family].items()}
    if "layers" in settings:
        settings["layers"] = "4"
    ask = Ask(
        model=family,
        batch=16,
        seq=None,
        settings=settings,
        dtype="float64",
        num_devices=1,
        memory_headroom=0.0,
    )
    return ask, trace(lambda: build(ask), family)


def planned(family: str, ranks: int, spec: Spec, pins: tuple[Pin, ...]) -> Plan:
    """The plan of a pipeline. Raises UserError if there is none."""
    ask, found = traced(family)
    cluster = load_cluster("cpu", num_devices=ranks)
    asked = replace(ask, num_devices=ranks)
    began = time.perf_counter()
    best = Pipelines(asked, cluster, pins, Budget.unlimited(), found).candidate(spec)
    proof = SolverRecord(bound=0.0, gap=1.0, num_meshes=1, time_s=0.0)
    return plan_of_pipeline(best, cluster, found.workload, proof, (), began).plan


def run_rank(paths: list[str], emit: Emit) -> list[dict[str, Any]] | None:
    """Of every plan: the errors of its first loss and gradients, and the bytes that each rank held;
    on rank 0."""
    found: list[dict[str, Any]] = []
    reference = None
    # All plans are of one model: it is traced once.
    once = cache(lambda hash_: traced_of(plans[0]))
    pipeline_replay.traced_of = lambda plan, seed=0: once(plan.graph_hash)
    plans = [read_plan(path) for path in paths]
    with join(plans[0].mesh.num_devices, "cpu") as place:
        for plan in plans:
            make = lambda plan=plan: workload_of(plan)  # noqa: E731
            pipeline = lowered(plan, place.rank)
            workload = in_dtypes(built(make, 0), pipeline)
            assert not hasattr(pipeline, "bodies")
            runner = PipelineExecutor(
                pipeline,  # type: ignore[arg-type]
                workload,
                rank=place.rank,
                device=place.device,
                keep_gradients=True,
            )
            loss = runner.step(workload.batch)
            gradients, parameters = runner.whole_gradients(), runner.whole_parameters()
            runner.keep_gradients = False
            for stage in runner.stages.values():
                stage.gradients = {}
            runner.recorded_step(workload.batch)
            runner.recorded_step(workload.batch)
            held: list[Any] = [None] * place.num_ranks
            torch.distributed.all_gather_object(held, runner.peak_memory_bytes)
            if place.rank:
                continue
            reference = reference or reference_run(make, pipeline, seed=0, num_steps=1)
            apart = compare([loss], gradients, parameters, reference)
            found.append({"loss": apart.loss_error, "gradient": apart.gradient_error, "held": held})
    return found if place.rank == 0 else None


def combinations(asked: argparse.Namespace) -> Iterator[Combination]:
    """All combinations that were asked for."""
    for schedule, layout in itertools.product(asked.schedules.split(","), asked.layouts.split(",")):
        yield Combination(schedule=schedule, layout=layout)


def measure(family: str, ranks: int, asked: argparse.Namespace) -> dict[str, Any]:
    """The row of one family on a number of ranks."""
    ran: list[tuple[Combination, Plan]] = []
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths: list[str] = []
        for one in combinations(asked):
            if (found := spec_of(one, ranks)) is None:
                continue
            try:
                plan = planned(family, ranks, *found)
            except UserError as reason:
                refused[str(one)] = str(reason)
                continue
            ran.append((one, plan))
            paths.append(str(Path(folder) / f"{len(ran)}.json"))
            write_plan(plan, Path(paths[-1]))
        errors = launch("pipelines_equality:run_rank", ranks, paths)[0] if paths else []
    row: dict[str, Any] = {"family": family, "ranks": ranks, "plans": len(ran), "refused": refused}
    for kind in ("loss", "gradient"):
        worst = max(range(len(ran)), key=lambda i: errors[i][kind], default=None)
        if worst is not None:
            row[kind], row[f"worst_{kind}"] = errors[worst][kind], str(ran[worst][0])
    row["memory"] = {
        str(one): plan.summary["memory_bytes"]["total"] / max(error["held"])
        for (one, plan), error in zip(ran, errors, strict=True)
    }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--families", default="gpt,lstm,t5,seq2seq-lstm,unet,bert,moe,llama,vit,cnn,mlp,dlrm"
    )
    parser.add_argument("--ranks", default="4,2,8")
    parser.add_argument("--schedules", default=",".join(SCHEDULES))
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = []
    for ranks, family in itertools.product(
        map(int, asked.ranks.split(",")), asked.families.split(",")
    ):
        row = measure(family, ranks, asked)
        rows.append(row)
        memory = sorted(row["memory"].values()) or [math.nan]
        print(
            f"{family:13s} {ranks} ranks: {row['plans']} plans, loss {row.get('loss', math.nan):.1e}, "
            f"gradient {row.get('gradient', math.nan):.1e} ({row.get('worst_gradient', '')}), predicted "
            f"bytes {memory[0]:.3f} to {memory[-1]:.3f} of those held",
            flush=True,
        )
        for one, reason in row["refused"].items():
            print(f"    {one}: {reason}", flush=True)
        write_results(asked, rows=rows)


if __name__ == "__main__":
    main()
