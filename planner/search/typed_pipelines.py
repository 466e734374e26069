"""A pipeline as a person typed it: checked, made and simulated as it stands. What was not typed (the
mesh of a stage, the number of microbatches) is the best of a few that are simulated; how the ops of
each stage are split is solved.

Ask, cluster, `PipelineOptions` -> FoundPipeline, or the search's plan if there is one stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from cost_models.errors import BadValue, DoesNotFit, NoPlan, UserError
from cost_models.machine import Cluster
from planner.dims.subdims import infer
from planner.graph.layout import Mesh
from planner.microbatch import check_globs, possible_microbatches
from planner.plans.models import model_of_graph
from planner.plans.plan import SolverRecord
from planner.plans.summary import ideal_seconds
from planner.schedules.registry import FOUND, scheduled
from planner.search.budget import Budget
from planner.search.found_schedules import with_found_schedule
from planner.search.meshes import meshes_of
from planner.search.pipeline_misfit import misfit_words
from planner.search.pipeline_planned import FoundPipeline, plan_of_pipeline
from planner.search.pipelines import PipelineCandidate, Pipelines, Spec
from planner.strategy.pinned import check_pins, matching
from planner.strategy.pins import Pin
from planner.strategy.pipeline_options import PipelineOptions
from planner.trace.trace import trace
from planner.trace.traced import Traced
from planner.workload.ask import Ask, build

__all__ = ["batch_of", "plan_typed", "typed_pipeline", "work_bound"]

Progress = Callable[[str, float], None]

#: If nobody says how many microbatches: those of these multiples of the pipeline ranks.
_ROUNDS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """The best of the pipelines that were simulated, and how many these are."""

    best: PipelineCandidate
    count: int


def plan_typed(
    ask: Ask,
    cluster: Cluster,
    options: PipelineOptions,
    *,
    budget: Budget | None = None,
    progress: Progress = lambda what, done: None,
) -> FoundPipeline:
    """The plan of the pipeline that was typed. Raises NoPlan, BadValue, CannotCut and CannotSplit
    for what cannot be, DoesNotFit with the stage that holds too much and what would fit."""
    began = time.perf_counter()
    progress("tracing the model", 0.0)
    traced = trace(lambda: build(ask), ask.model)
    check_globs(traced.graph, ask.per_microbatch)
    pins = options.all_pins
    made = Pipelines(ask, cluster, pins, budget or Budget.unlimited(), traced)
    progress("planning the stages", 0.3)
    found = _best(made, options, cluster)
    _check_pins(found.best, pins)
    if not found.best.fits:
        progress("looking for a change that fits", 0.8)
        raise DoesNotFit(misfit_words(made, found.best, options))
    return _planned(found, cluster, traced, began, progress)


def typed_pipeline(
    ask: Ask,
    cluster: Cluster,
    spec: Spec,
    pins: tuple[Pin, ...] = (),
    *,
    budget: Budget | None = None,
    progress: Progress = lambda what, done: None,
) -> FoundPipeline:
    """The plan of one pipeline, of which all is given. Raises as `plan_typed`."""
    options = PipelineOptions(
        places=spec.places,
        mesh=spec.meshes[0],
        meshes=() if spec.is_uniform else spec.meshes,
        microbatches=spec.microbatches,
        schedule=spec.schedule,
        given=spec.given,
        chunks=spec.chunks,
        pins=pins,
    )
    return plan_typed(ask, cluster, options, budget=budget, progress=progress)


def _planned(
    found: _Made, cluster: Cluster, traced: Traced, began: float, progress: Progress
) -> FoundPipeline:
    best = found.best
    proving = time.perf_counter()
    bound, step = work_bound(best, cluster), best.prediction.step_time_s
    proof = SolverRecord(
        bound=bound,
        gap=(step - bound) / step,
        num_meshes=found.count,
        time_s=time.perf_counter() - proving,
    )
    progress("done", 1.0)
    return plan_of_pipeline(best, cluster, traced.workload, proof, (), began)


def work_bound(best: PipelineCandidate, cluster: Cluster) -> float:
    """Seconds that no plan of the model on these devices is below: all its products at their peak,
    evenly on all devices."""
    ideal = sum(ideal_seconds(stage.model, cluster) for stage in best.stages)
    return ideal / best.spec.num_devices


# ----------------------------------------------------------------------------- what was not typed


def _best(made: Pipelines, options: PipelineOptions, cluster: Cluster) -> _Made:
    """The pipeline that fits and is fastest: of all meshes of a stage with a usual number of
    microbatches, then of the best mesh with other numbers; what was typed stays. Raises the first
    reason if there is none."""
    numbers = _numbers(made, options)
    tried: list[PipelineCandidate] = []
    reasons: list[UserError] = []

    def try_one(mesh: Mesh | tuple[Mesh, ...], number: int) -> None:
        spec = Spec(
            places=options.places,
            mesh=mesh,
            microbatches=number,
            schedule=options.schedule or ("interleaved" if options.chunks > 1 else "1f1b"),
            given=options.given,
            chunks=options.chunks,
        )
        try:
            tried.append(_candidate(made, spec))
        except (NoPlan, BadValue) as error:
            reasons.append(error)

    for mesh in _meshes(options, cluster):
        if not tried or not made.budget.over():
            try_one(mesh, numbers[0])
    for number in numbers[1:]:
        if tried and not made.budget.over():
            try_one(min(tried, key=_rank).spec.mesh, number)
    if not tried:
        raise reasons[0]
    return _Made(best=min(tried, key=_rank), count=len(tried))


def _candidate(made: Pipelines, spec: Spec) -> PipelineCandidate:
    if spec.schedule == FOUND:
        return with_found_schedule(made, spec)
    return made.candidate(spec)


def _rank(one: PipelineCandidate) -> tuple[bool, float]:
    """The fastest that fits; if none does, the leanest."""
    return not one.fits, one.prediction.step_time_s if one.fits else max(one.prediction.place_bytes)


def _meshes(options: PipelineOptions, cluster: Cluster) -> Iterator[Mesh | tuple[Mesh, ...]]:
    """The mesh of a stage that was typed, or those of all ranks, or all of one and two axes."""
    if options.meshes:
        yield options.meshes
        return
    if options.mesh is not None:
        yield options.mesh
        return
    each = cluster.num_devices // options.places
    if each == 1:
        yield Mesh(("dp",), (1,))
        return
    yield from (mesh for mesh in meshes_of(cluster.slice(0, each)) if len(mesh.sizes) <= 2)


def _numbers(made: Pipelines, options: PipelineOptions) -> list[int]:
    """The numbers of microbatches to try, the most usual first. Raises BadValue if the schedule can
    have none that divides the batch."""
    batch = batch_of(made.traced)
    if number := options.number(batch):
        return [number]
    possible = possible_microbatches(made.traced.graph, infer(made.traced.graph))
    legal, reason = [], None
    for number in possible:
        if number >= 2 or len(possible) == 1:
            try:
                _check_schedule(options, number)
                legal.append(number)
            except BadValue as error:
                reason = error
    if not legal:
        raise reason or BadValue(
            f"a batch of {batch} cannot be cut into microbatches: raise --batch"
        )
    wanted = [rounds * options.places for rounds in _ROUNDS]
    near = [min(legal, key=lambda n: abs(n - want)) for want in wanted]
    usual = near[_ROUNDS.index(4)]
    return list(dict.fromkeys((usual, *near)))


def _check_schedule(options: PipelineOptions, number: int) -> None:
    """Raises BadValue if the schedule cannot have so many microbatches."""
    if options.schedule != FOUND and options.given is None:
        name = options.schedule or ("interleaved" if options.chunks > 1 else "1f1b")
        scheduled(name, options.places, number, options.chunks)


def batch_of(traced: Traced) -> int:
    """The samples of a batch."""
    return int(traced.workload.batch[0].shape[0])


def _check_pins(best: PipelineCandidate, pins: tuple[Pin, ...]) -> None:
    """Raises as `check_pins` for pins that match nothing, or change nothing on any stage that they
    match."""
    for pin in pins:
        own = [stage for stage in best.stages if matching(stage.model, (pin,))]
        if not own:
            whole = model_of_graph(best.model.graph, best.model.whole, compiled=False)
            check_pins(whole, list(dict.fromkeys(best.spec.meshes)), (pin,))
        reasons: list[UserError] = []
        for stage in own:
            try:
                check_pins(stage.model, [stage.mesh], (pin,))
            except UserError as error:
                reasons.append(error)
        if len(reasons) == len(own):
            raise reasons[0]


def with_microbatches(ask: Ask, options: PipelineOptions) -> Ask:
    """The ask with the microbatches that were typed by their size, for a plan of one stage."""
    if not options.samples:
        return ask
    traced = trace(lambda: build(ask), ask.model)
    return replace(ask, microbatches=options.number(batch_of(traced)))
