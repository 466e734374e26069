"""The search over everything: plans without stages, and pipelines.

Ask, cluster -> the plan that is faster in simulation. Pipelines are tried in the order of their
estimates, as long as an estimate is below the best plan so far; those not tried, with why, are in
the summary.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

from cost_models.errors import DoesNotFit, NoPlan, UserError
from cost_models.machine import Cluster
from planner.graph.layout import Mesh
from planner.microbatch import CannotSplit, possible_microbatches
from planner.plans.plan import Alternative, SolverRecord
from planner.schedules.registry import SCHEDULES
from planner.search.budget import Budget
from planner.search.pipeline_planned import FoundPipeline, plan_of_pipeline
from planner.search.pipeline_specs import compute_bound, estimates
from planner.search.pipelines import PipelineCandidate, Pipelines, Spec
from planner.search.search import Found, search
from planner.search.searched import Progress
from planner.stages import CannotCut
from planner.strategy.pins import MODE_PINS, Pin
from planner.trace.trace import trace
from planner.trace.traced import Traced
from planner.workload.ask import Ask, build

__all__ = ["joint_search"]

#: A pipeline is worth a look if a step without stages takes longer than all kernels, evenly on all
#: devices, by this factor.
_WORTH = 1.03
#: The share of the time for plans without stages, and that after which no further pipeline is tried.
_SINGLE, _TRIED = 0.5, 0.6
#: On more devices than this, plans without stages, which then rarely fit, have a smaller share.
_MANY, _SINGLE_OF_MANY = 1024, 0.2
#: Pipelines that are tried at most, and those beside the fastest whose schedule is changed.
_MOST_TRIED = 8
#: Estimates leave out what only a simulation knows; of those that were simulated, all were too low by
#: this factor or more.
_OPTIMISM = 1.1
#: If there is a plan without stages, pipelines get as many seconds as it took, and at least these.
_LEAST_SECONDS = 2.0


@dataclass(slots=True)
class _Tried:
    """The pipelines tried so far."""

    best: PipelineCandidate | None = None
    simulated: int = 0
    cut_off: int = 0
    priced: int = 0
    bound: float = 0.0
    refused: list[str] = field(default_factory=list)

    def add(self, one: PipelineCandidate) -> None:
        self.simulated += 1
        if self.best is None or _rank(one) < _rank(self.best):
            self.best = one

    @property
    def step_time_s(self) -> float:
        """The step of the best pipeline that fits."""
        fits = self.best is not None and self.best.fits
        return self.best.prediction.step_time_s if fits and self.best else math.inf


def joint_search(
    ask: Ask,
    cluster: Cluster,
    *,
    mesh: Mesh | None = None,
    pins: tuple[Pin, ...] = (),
    progress: Progress = lambda what, done: None,
    any_microbatches: bool = False,
    own_process: bool = False,
    budget: Budget | None = None,
) -> Found | FoundPipeline:
    """The best plan, with stages or without. As `search`, of which it takes the arguments; without
    `any_microbatches`, with a mesh, or with pins on single modules or on splits, only plans without
    stages are searched.

    Raises as `search`, if no pipeline fits either.
    """
    budget, began = budget or Budget.unlimited(), time.perf_counter()
    splits = [pin for pin in pins if pin.choice not in MODE_PINS or pin.pattern != "*"]
    if mesh is not None or splits or not any_microbatches or cluster.num_devices == 1:
        return search(
            ask,
            cluster,
            mesh=mesh,
            pins=pins,
            progress=progress,
            any_microbatches=any_microbatches,
            own_process=own_process,
            budget=budget,
        )
    progress("tracing the model", 0.0)
    traced = trace(lambda: build(ask), ask.model)
    share = _SINGLE_OF_MANY if cluster.num_devices > _MANY else _SINGLE
    found, error = _single(
        ask, cluster, pins, progress, budget.until(share), traced, own_process=own_process
    )
    step = math.inf if found is None else found.plan.summary["step_time_s"]
    progress("trying pipelines", 0.6)
    time_left = budget.until(_TRIED)
    if found is not None:
        spent = time.perf_counter() - began
        time_left = Budget(max(_LEAST_SECONDS, spent), time.perf_counter, time.perf_counter())
    tried = _pipelines(ask, cluster, pins, time_left, traced, step)
    if tried.step_time_s < step:
        assert tried.best is not None
        return _chosen(tried, found, cluster, traced, began)
    if found is None:
        assert error is not None
        raise error
    return found


def _single(
    ask: Ask,
    cluster: Cluster,
    pins: tuple[Pin, ...],
    progress: Progress,
    budget: Budget,
    traced: Traced,
    *,
    own_process: bool,
) -> tuple[Found | None, UserError | None]:
    """The best plan without stages, or why there is none."""
    try:
        found = search(
            ask,
            cluster,
            pins=pins,
            progress=lambda what, done: progress(what, 0.6 * done),
            any_microbatches=cluster.num_devices <= _MANY,
            own_process=own_process,
            budget=budget,
            traced=traced,
        )
    except DoesNotFit as error:
        return None, error
    except NoPlan as error:
        if not budget.over():  # a batch or pins that leave no plan
            raise
        return None, error
    return found, None


def _pipelines(
    ask: Ask,
    cluster: Cluster,
    pins: tuple[Pin, ...],
    budget: Budget,
    traced: Traced,
    step: float,
) -> _Tried:
    """The pipelines that may be faster than `step`."""
    tried = _Tried()
    made = Pipelines(ask, cluster, pins, budget, traced)
    try:
        tried.bound = compute_bound(made.costs, cluster.num_devices)
    except CannotCut as error:
        tried.refused.append(str(error))
        return tried
    if step <= _WORTH * tried.bound:
        return tried
    optimizer = traced.workload.optimizer
    every = estimates(
        made.costs,
        cluster,
        possible_microbatches(traced.graph, made.dims),
        optimizer=optimizer,
        formats=ask.formats,
        capacity=made.capacity,
    )
    tried.priced = len(every)
    for one in every:
        below = min(step, tried.step_time_s)
        if one.seconds * _OPTIMISM >= below or tried.simulated >= _MOST_TRIED:
            tried.cut_off = len(every) - tried.simulated
            break
        if budget.over():
            tried.cut_off = len(every) - tried.simulated
            break
        _try(made, one.spec, tried, below)
    if tried.best is not None and tried.best.fits:
        _improve(made, tried, budget, step)
    return tried


def _try(made: Pipelines, spec: Spec, tried: _Tried, below: float) -> None:
    try:
        tried.add(made.candidate(spec, below=below))
    except (CannotCut, CannotSplit, NoPlan) as error:
        tried.refused.append(str(error))


def _improve(made: Pipelines, tried: _Tried, budget: Budget, step: float) -> None:
    """Tries other schedules of the best pipeline, and its stages cut where the simulated times are
    even."""
    assert tried.best is not None
    if tried.step_time_s >= step * 1.1:
        return
    spec = tried.best.spec
    for name, kind in SCHEDULES.items():
        if name == spec.schedule or budget.over():
            continue
        if kind.misfit(spec.places, spec.microbatches):
            continue
        _try(made, replace(spec, schedule=name), tried, min(step, tried.step_time_s))


def _rank(one: PipelineCandidate) -> tuple[bool, float]:
    return not one.fits, one.prediction.step_time_s


def _chosen(
    tried: _Tried, found: Found | None, cluster: Cluster, traced: Traced, began: float
) -> FoundPipeline:
    """The plan of the best pipeline."""
    best = tried.best
    assert best is not None
    bound = tried.bound if found is None else min(tried.bound, found.plan.solver.bound)
    step = best.prediction.step_time_s
    proof = SolverRecord(
        bound=bound,
        gap=(step - bound) / step,
        num_meshes=tried.simulated,
        time_s=0.0,
    )
    rows: tuple[Alternative, ...] = ()
    if found is not None:
        own = found.plan
        rows = (
            Alternative(
                name="no stages",
                mesh=str(own.mesh),
                step_time_s=own.summary["step_time_s"],
                memory_bytes=own.summary["memory_bytes"]["total"],
                fits=True,
            ),
            *own.alternatives,
        )
    plan = plan_of_pipeline(best, cluster, traced.workload, proof, rows, began)
    counts: dict[str, Any] = {
        "priced": tried.priced,
        "simulated": tried.simulated,
        "cut_off": tried.cut_off,
    }
    summary = {**plan.plan.summary, "pipelines": counts}
    return replace(plan, plan=replace(plan.plan, summary=summary))
