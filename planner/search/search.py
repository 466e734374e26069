"""The search: which mesh, which strategies, and how they compare with the baselines.

Model, cluster, pins -> Plan. For every mesh the ILP proposes its best plan (`proposals`); each is
lowered and simulated, and the one with the shortest simulated step that fits is taken (`choose`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from cost_models.machine import Cluster
from planner.graph.checking import checked
from planner.graph.layout import Mesh
from planner.lowering.lower import lower
from planner.plans.plan import Plan, SolverRecord
from planner.plans.words import axis_names
from planner.predict.predict import Run
from planner.program.check_program import ranks_faults
from planner.program.dry import CannotRun, dry_run
from planner.program.program import Program
from planner.search.bounds import bounded_meshes
from planner.search.bounds_in_memory import bound_of_fitting
from planner.search.budget import Budget
from planner.search.fitting import fitting
from planner.search.misfit import Misfit, Search, misfit_error
from planner.search.over_numbers import searched_over_numbers
from planner.search.padding import cheaper_sizes, resized, vocabulary
from planner.search.planned import plan_of
from planner.search.proposals import Candidate, Proposal, Proposer
from planner.search.searched import Progress, proposer_of
from planner.strategy.pins import Pin
from planner.strategy.traced_model import Model
from planner.trace.trace import line_of, trace
from planner.trace.traced import Traced
from planner.workload.ask import Ask, build
from planner.workload.workload import Workload

__all__ = ["Found", "search"]

#: The share of the step time that a padded vocabulary must save to be reported.
WORTH = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A plan with the objects that it was made from, for reports that need more than the file."""

    plan: Plan
    model: Model
    workload: Workload
    program: Program
    run: Run
    candidates: tuple[Candidate, ...] = field(default=())


def search(
    ask: Ask,
    cluster: Cluster,
    *,
    mesh: Mesh | None = None,
    pins: tuple[Pin, ...] = (),
    progress: Progress = lambda what, done: None,
    any_microbatches: bool = False,
    own_process: bool = False,
    budget: Budget | None = None,
    traced: Traced | None = None,
) -> Found:
    """The best plan for `ask` on `cluster`, on `mesh` if it is given and under `pins`; or the best
    that was found before the `budget` was over (default: no limit). If `any_microbatches`, more
    microbatches than the ask's are tried if memory is short. `own_process`: this process
    runs nothing but the search, so a second process may be forked to share the work. `traced` is the
    traced model, if there is one already.

    Raises NoPlan if the batch, the pins or the budget leave no plan, DoesNotFit if none fits the
    memory.
    """
    budget, started = budget or Budget.unlimited(), time.perf_counter()
    if traced is None:
        progress("tracing the model", 0.0)
        traced = trace(lambda: build(ask), ask.model)
    proposer = proposer_of(ask, cluster, pins, budget, traced)
    try:
        searched, why_one = searched_over_numbers(
            proposer,
            mesh,
            progress,
            own_process=own_process,
            traced=traced if any_microbatches else None,
        )
    except Misfit as misfit:
        progress("looking for a change that fits", 0.9)
        failed = Search(
            ask=ask,
            cluster=cluster,
            mesh=mesh,
            pins=pins,
            any_microbatches=any_microbatches,
            plans=partial(_chosen, mesh),
        )
        raise misfit_error(misfit, failed) from None
    proposer, best = searched.proposer, searched.best
    _check_runs(best.program, ask)
    checked("all ranks", lambda: _ranks_faults(proposer.model, best))
    progress("proving the bound", 0.9)
    proof, if_fits = _proved(proposer, searched.proposals, best)
    model, workload, costing = proposer.model, proposer.workload, best.proposal.table.costing
    if mesh is None:
        mesh = Mesh(axis_names(model, best.choices, costing, best.mesh.sizes), best.mesh.sizes)
    more = {
        "padding": _padded(proposer, best),
        **searched.left_out,
        "only_one_microbatch": why_one,
        "bound_of_fitting": if_fits,
    }
    elapsed = time.perf_counter() - started
    plan = plan_of(proposer.ask, cluster, workload, best, mesh, proof, searched.rows, elapsed)
    more = {key: said for key, said in (_of_the_search(proposer, best) | more).items() if said}
    plan = replace(plan, summary={**plan.summary, **more})
    progress("done", 1.0)
    assert best.run is not None  # the chosen candidate is whole
    return Found(
        plan=plan,
        model=model,
        workload=workload,
        program=best.program,
        run=best.run,
        candidates=tuple(searched.candidates),
    )


def _of_the_search(proposer: Proposer, best: Candidate) -> dict[str, Any]:
    """What a summary says of how its plan was found; what is empty or false is left out of it."""
    return {
        "standard_name": best.name,
        "extrapolated_from": [] if proposer.shallow is None else list(proposer.shallow.depths),
        "time_limit_s": proposer.budget.over() and proposer.budget.limit,
    }


def _chosen(
    mesh: Mesh | None,
    ask: Ask,
    cluster: Cluster,
    pins: tuple[Pin, ...],
    any_microbatches: bool,
    budget: Budget,
) -> Proposer:
    """The proposer of what a search would choose, without baselines. Raises Misfit and NoPlan."""
    traced = trace(lambda: build(ask), ask.model)
    proposer = proposer_of(ask, cluster, pins, budget, traced)
    found, _ = searched_over_numbers(
        proposer,
        mesh,
        lambda what, done: None,
        own_process=False,
        traced=traced if any_microbatches else None,
        compared=False,
    )
    return found.proposer


def _proved(
    proposer: Proposer, proposals: list[Proposal], best: Candidate
) -> tuple[SolverRecord, bool]:
    """The proof of the plan, from the tables of all meshes that were searched (the plan's own mesh
    is one of them); and whether its bound is only one of plans that fit."""
    began = time.perf_counter()
    own = (
        []
        if any(p.mesh.sizes == best.mesh.sizes for p in proposals)
        else proposer.proposals(replace(best.mesh, names=tuple("abc"[: len(best.mesh.sizes)])))
    )
    tables = {p.mesh: (p.table, p.solution.choice) for p in (*proposals, *own)}
    step = best.prediction.step_time_s
    found = bounded_meshes(list(tables.values()), step, lambda: max(1.0, proposer.budget.left / 2))
    bound = of_all = min(mesh.bound for mesh in found)
    if any(table is best.proposal.table for table in proposer.with_modes.values()):
        bound = bound_of_fitting(proposer, dict(zip(tables, found, strict=True)), step)
    record = SolverRecord(
        bound=bound,
        gap=(step - bound) / step,
        num_meshes=len(tables),
        time_s=time.perf_counter() - began,
    )
    return record, bound > of_all


def _padded(proposer: Proposer, best: Candidate) -> dict[str, Any] | None:
    """A larger vocabulary with which the model, planned again on the same mesh, is faster: the
    setting and its step time; None if there is none."""
    found = vocabulary(proposer.model, proposer.workload)
    if found is None or proposer.budget.over():
        return None
    setting, atoms = found
    for size in cheaper_sizes(proposer.model, atoms, best.choices, best.proposal.table.costing):
        model = resized(proposer.model, atoms, size)
        other = Proposer(
            proposer.ask,
            model,
            proposer.workload,
            proposer.cluster,
            proposer.pins,
            budget=proposer.budget,
        )
        same = next(
            p for p in other.proposals(best.mesh) if p.overlapped == best.proposal.overlapped
        )
        larger = fitting(other, other.candidate(same))
        seconds = larger.prediction.step_time_s
        if larger.fits(proposer.capacity) and seconds < best.prediction.step_time_s * (1 - WORTH):
            return {"setting": f"{setting}={size}", "step_time_s": seconds}
    return None


#: With more ranks than this, only those on an axis through the first or the last rank are checked:
#: each has a program of its own to be lowered.
_MOST_RANKS = 16


def _ranks_faults(model: Model, best: Candidate) -> Iterator[str]:
    """The faults between the programs of the plan's ranks, and those within the programs of ranks
    other than the first."""
    mesh, costing = best.mesh, best.proposal.table.costing
    ranks = {*range(mesh.num_devices)}
    if len(ranks) > _MOST_RANKS:
        lines = (group for axis in range(len(mesh.sizes)) for group in mesh.groups((axis,)))
        ranks = {rank for group in lines if {0, mesh.num_devices - 1} & {*group} for rank in group}
    programs = dict.fromkeys(sorted(ranks), best.program)
    if best.program.rank is not None:
        programs |= {
            rank: lower(model, mesh, best.choices, costing, rank=rank) for rank in programs if rank
        }
    return ranks_faults(mesh, programs)


def _check_runs(program: Program, ask: Ask) -> None:
    """Raises CannotRun for a program that no rank can run, naming the model's line if it is
    known."""
    try:
        dry_run(program)
    except CannotRun as error:
        raise CannotRun(f"{error}{line_of(lambda: build(ask), error.op, error.path)}") from error
