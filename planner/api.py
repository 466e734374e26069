"""The Python API: plan a module, look at the plan, save it. docs/api.md has an example from
beginning to end.

    module, batch, loss, cluster -> Planned

Running is `runtime.training.train_plan(planned.path, batches)`: planning does not import the
runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cost_models.atomic_write import write_atomically
from cost_models.cluster import load_cluster
from cost_models.errors import BadValue
from cost_models.machine import Cluster
from cost_models.memory import MEMORY_HEADROOM
from planner.plans.pipeline_replay import pipeline_of
from planner.plans.plan import Plan
from planner.plans.plan_file import write_plan
from planner.plans.replay import program_of
from planner.plans.retrace import SET_ORDER, digest_elsewhere, may_follow_a_set
from planner.predict.places import prediction_of_places
from planner.predict.predict import Prediction, predict
from planner.report.files import plan_files
from planner.search.asked import plan_asked
from planner.search.budget import TIME_LIMIT, Budget
from planner.search.pipeline_planned import FoundPipeline
from planner.search.search import Found
from planner.search.transfer_times import predicted
from planner.state.hash_seed import chosen
from planner.state.hung import check_hooks
from planner.strategy.pipeline_options import pipeline_options
from planner.workload.ask import Ask, default_precision
from planner.workload.optimizers import by_name, of_torch
from planner.workload.parts import workload_of
from planner.workload.precision import precision_of
from planner.workload.saved import write_saved

__all__ = ["Planned", "plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, the cluster that it is for, and the folder that holds its model and, with `save`,
    its report and pictures too."""

    found: Found | FoundPipeline
    cluster: Cluster
    folder: Path

    @property
    def plan(self) -> Plan:
        """The plan: mesh, choices, figures (`plan.summary`), proof, alternatives."""
        return self.found.plan

    @property
    def path(self) -> Path:
        """The plan's file, which `train_plan` and every verb of the command line take."""
        return self.folder / "plan.json"

    def simulate(self, cluster: Cluster | str | None = None) -> Prediction:
        """One step, predicted: on the plan's cluster, or on another of as many devices."""
        other = (
            load_cluster(cluster, num_devices=self.cluster.num_devices)
            if isinstance(cluster, str)
            else cluster or self.cluster
        )
        if isinstance(self.found, FoundPipeline):
            pipeline = pipeline_of(self.plan, other)
            return prediction_of_places(pipeline, predicted(pipeline, other))
        if cluster is None:
            return predict(self.found.program, self.cluster)
        return predict(program_of(self.plan, other), other)

    def save(self) -> Path:
        """Writes report, timeline and pictures beside the plan; returns the plan's file."""
        _, contents = plan_files(self.found, self.cluster, self.folder)
        for name, content in contents.items():
            write_atomically(self.folder / name, content)
        return self.path

    def report(self) -> str:
        """The report as Markdown."""
        _, contents = plan_files(self.found, self.cluster, self.folder)
        return str(contents["report.md"])


def plan(
    model: torch.nn.Module,
    batch: Any,
    loss: Callable[[Any, Any], Any],
    *,
    cluster: Cluster | str = "cpu",
    num_devices: int | None = None,
    mesh: str | None = None,
    pins: Sequence[str] = (),
    recompute: str = "chosen",
    pipeline: int | None = None,
    schedule: str | None = None,
    chunks: int | None = None,
    optimizer: str | torch.optim.Optimizer = "adam",
    learning_rate: float | None = None,
    optimizer_settings: Mapping[str, Any] | None = None,
    precision: str | None = None,
    reduce_gradients: str | None = None,
    accumulate_gradients: str | None = None,
    compile: bool = False,
    clip_norm: float | None = None,
    microbatches: int | None = None,
    per_microbatch: Sequence[str] = (),
    memory_headroom: float = MEMORY_HEADROOM,
    time_limit: float = TIME_LIMIT,
    folder: str | Path = "",
) -> Planned:
    """The best plan to train `model` on `cluster` (a name of `plan hardware`, a file, or a record).

    `batch` is an example: a tuple with the target last, or a dict that goes whole to the module and
    the loss; either may be nested. `loss` takes what the module returns and the target, and returns
    a scalar, or several in a dict or tuple, of which the sum is trained. `optimizer` is a name,
    with `learning_rate` (by default 1e-3) and `optimizer_settings` (`{"weight_decay": 0.1}`), or
    one of torch's own over the module's parameters, also in groups; it is not stepped. `mesh`,
    `pins`, `recompute`, `pipeline`, `schedule`, `chunks`, `precision`, `reduce_gradients`,
    `accumulate_gradients`, `compile`, `clip_norm`, `microbatches`, `per_microbatch` (globs of
    modules), `memory_headroom` (a share below 1) and `time_limit` (seconds, then the best plan so
    far is taken) are as on the command line. The model's values, as they are, and the plan are
    written to `folder` (by default `plans/CLASS-DEVICES`), from which the ranks of a run read them.

    Raises BadValue for a model or loss that cannot be passed to processes, NotTraceable, NoPlan
    and DoesNotFit as planning does.
    """
    _check(microbatches, per_microbatch, pins, clip_norm, memory_headroom)
    budget = Budget.start(time_limit)
    on = load_cluster(cluster, num_devices=num_devices) if isinstance(cluster, str) else cluster
    where = Path(folder) if folder else Path("plans") / f"{type(model).__name__}-{on.num_devices}"
    # Reports a bad batch before anything is written.
    workload_of(type(model).__name__, model, batch, loss)
    # The file cannot hold hooks: the model would be planned without them.
    check_hooks(type(model).__name__, model)
    formats = precision_of(
        precision or default_precision("", on.device),
        reduce_gradients or "",
        accumulate_gradients or "",
    )
    trained = _optimizer(optimizer, learning_rate, optimizer_settings or {}, model, loss)
    name = write_saved(where / "model.pt", model, batch, loss, trained)
    ask = Ask(
        model=name,
        batch=None,
        seq=None,
        settings={},
        num_devices=on.num_devices,
        **formats.fields(),
        clip_norm=clip_norm,
        microbatches=microbatches or 1,
        per_microbatch=tuple(per_microbatch),
        memory_headroom=memory_headroom,
        compile=compile,
    )
    options = pipeline_options(
        num_devices=on.num_devices,
        pipeline=pipeline,
        schedule=schedule,
        chunks=chunks,
        mesh=mesh,
        microbatches=microbatches or 0,
        recompute=recompute,
        pins=pins,
    )
    found = plan_asked(ask, on, options, any_microbatches=microbatches is None, budget=budget)
    write_plan(found.plan, where / "plan.json")
    if (
        not chosen()
        and may_follow_a_set(model)
        and digest_elsewhere(where / "plan.json") not in ("", found.plan.graph_hash)
    ):
        raise BadValue(f"{type(model).__name__} cannot be run in other processes: {SET_ORDER}")
    return Planned(found=found, cluster=on, folder=where)


def _check(
    microbatches: int | None,
    per_microbatch: Sequence[str],
    pins: Sequence[str],
    clip_norm: float | None,
    memory_headroom: float,
) -> None:
    """Raises BadValue for an argument that cannot be. Others are checked where they are read."""
    if microbatches is not None and not (isinstance(microbatches, int) and microbatches >= 1):
        raise BadValue(
            f"microbatches={microbatches!r}: give a whole number of at least 1, or None to have it "
            "chosen"
        )
    if isinstance(per_microbatch, str):
        raise BadValue(
            f"per_microbatch={per_microbatch!r}: give a list, as in [{per_microbatch!r}]"
        )
    if isinstance(pins, str):
        raise BadValue(f"pins={pins!r}: give a list of pins, as in pins=[{pins!r}]")
    if clip_norm is not None and not 0 < clip_norm < float("inf"):
        raise BadValue(f"clip_norm={clip_norm}: give a positive number")
    if not 0 <= memory_headroom < 1:
        raise BadValue(f"memory_headroom={memory_headroom}: give a share of at least 0 and below 1")


def _optimizer(
    optimizer: str | torch.optim.Optimizer,
    rate: float | None,
    settings: Mapping[str, Any],
    model: torch.nn.Module,
    loss: Any,
) -> dict[str, Any]:
    """The fields of a workload for the optimizer."""
    if isinstance(optimizer, str):
        return by_name(optimizer, 1e-3 if rate is None else rate, settings)
    if rate is not None or settings:
        raise BadValue(
            "learning_rate and optimizer_settings apply to an optimizer given by name: give "
            f"them to the {type(optimizer).__name__} itself"
        )
    return of_torch(optimizer, model, loss)
