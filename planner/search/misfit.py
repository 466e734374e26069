"""The error if no plan fits, with a change under which one does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from cost_models.errors import BadValue, DoesNotFit, NoPlan, UserError
from cost_models.machine import Cluster
from cost_models.units import format_bytes
from planner.graph.layout import Mesh
from planner.plans.models import modelled
from planner.plans.replay import shallow_of
from planner.predict.predict import peak_position
from planner.search.budget import Budget
from planner.search.fit import OutOfTime, explain_misfit, nearest_change
from planner.search.fitting import lean
from planner.search.meshes import meshes_of
from planner.search.proposals import Candidate, Proposer
from planner.strategy.pins import Pin
from planner.trace.trace import trace
from planner.workload.ask import Ask, build

__all__ = ["Misfit", "Search", "misfit_error"]


class Misfit(Exception):
    """No plan fits; `least` is the leanest of the candidates of `proposer`. `why_one` says why the
    batch cannot be cut into microbatches, if that was tried."""

    def __init__(self, proposer: Proposer, candidates: Sequence[Candidate]) -> None:
        super().__init__(candidates)
        self.proposer, self.candidates = proposer, tuple(candidates)
        self.least = min(candidates, key=lambda c: c.prediction.total_memory_bytes)
        self.why_one = ""


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search that found no plan: what was asked of which cluster, and whether any number of
    microbatches was allowed. `plans` is the same search for another ask, under other pins and with
    or without other numbers of microbatches."""

    ask: Ask
    cluster: Cluster
    mesh: Mesh | None
    pins: tuple[Pin, ...]
    any_microbatches: bool
    plans: Callable[[Ask, Cluster, tuple[Pin, ...], bool, Budget], Proposer]


def misfit_error(misfit: Misfit, search: Search) -> UserError:
    """The error that says how much memory the leanest candidate lacks, and what would fit: a change
    under which the same search, which the user would run next, finds a plan. If the time was up
    before a plan that fits was found, the error says only that."""
    proposer, least = misfit.proposer, misfit.least
    if proposer.budget.over():
        return _out_of_time(proposer, least)
    return DoesNotFit(
        explain_misfit(
            proposer.workload.name,
            search.ask,
            proposer.cluster,
            least.prediction,
            peak_position(least.program),
            "x".join(map(str, least.mesh.sizes)),
            proposer.ask.microbatches,
            _change(proposer, search) + (f"; {misfit.why_one}" if misfit.why_one else ""),
        )
    )


def _out_of_time(proposer: Proposer, least: Candidate) -> NoPlan:
    limit = proposer.budget.limit
    needed, allowed = (
        format_bytes(b) for b in (least.prediction.total_memory_bytes, int(proposer.capacity))
    )
    return NoPlan(
        f"no plan of {proposer.workload.name!r} that fits was found within the time limit of "
        f"{limit:g} s; the one with the least memory needs {needed} per device, of {allowed} "
        f"allowed: raise --time-limit to {2 * limit:g}, or take a smaller batch"
    )


def _change(proposer: Proposer, search: Search) -> str:
    """What would fit, in words: what costs time only, if that is enough, else a smaller batch or
    more devices."""
    budget = proposer.budget

    def quickly(ask: Ask, cluster: Cluster) -> bool:
        try:
            return _may_fit(_in_time(budget), ask, cluster, search, proposer)
        except (BadValue, NoPlan):  # a smaller batch may not be cut into as many microbatches
            return False

    def surely(ask: Ask, cluster: Cluster) -> bool:
        try:
            search.plans(ask, cluster, search.pins, search.any_microbatches, _in_time(budget))
        except (Misfit, NoPlan, BadValue):
            return False
        return True

    cheap = _costs_only_time(search, budget)
    if cheap:
        return f"what fits: {cheap}"
    batch, seq = int(proposer.workload.batch[0].shape[0]), proposer.workload.options.get("seq")
    return nearest_change(
        search.ask,
        batch,
        seq if isinstance(seq, int) else None,
        search.cluster,
        quickly,
        surely,
        more=search.mesh is None,
    )


def _costs_only_time(search: Search, budget: Budget) -> str:
    """The options, given by the user, that need not be as they are: without them something is
    computed again, or the batch is cut into microbatches. Empty if that is not enough."""
    keeping = [pin for pin in search.pins if pin in map(Pin, "**", ("keep", "selective"))]
    free = tuple(pin for pin in search.pins if pin not in keeping)
    tries: list[tuple[tuple[Pin, ...], bool]] = []
    if keeping:
        tries.append((free, search.any_microbatches))
    if not search.any_microbatches:
        tries += [(pins, True) for pins in dict.fromkeys((search.pins, free))]
    for pins, any_microbatches in tries:
        try:
            found = search.plans(
                search.ask, search.cluster, pins, any_microbatches, _in_time(budget)
            )
        except OutOfTime:
            return ""
        except (Misfit, NoPlan):
            continue
        words = ["--recompute chosen"] if pins != search.pins else []
        if found.ask.microbatches != search.ask.microbatches:
            words.append(f"--microbatches {found.ask.microbatches}")
        return " ".join(words)
    return ""


def _in_time(budget: Budget) -> Budget:
    """A budget of the time left. Raises OutOfTime if there is none."""
    if budget.over():
        raise OutOfTime(budget.limit)
    return budget.rest()


def _may_fit(budget: Budget, ask: Ask, cluster: Cluster, search: Search, asked: Proposer) -> bool:
    """Whether a lean plan on one or two axes fits: enough to decide whether to search. If any number
    of microbatches is allowed, as many as in the leanest plan of the search, or a divisor."""
    traced = trace(lambda: build(ask), ask.model)
    if search.any_microbatches:
        ask = replace(
            ask,
            microbatches=math.gcd(traced.workload.batch[0].shape[0], asked.ask.microbatches),
        )
    model = modelled(traced, ask)
    proposer = Proposer(
        ask, model, traced.workload, cluster, asked.pins, shallow_of(traced, model, ask), budget
    )
    return any(lean(proposer, one).fits(proposer.capacity) for one in _meshes(cluster, search.mesh))


def _meshes(cluster: Cluster, mesh: Mesh | None) -> Iterator[Mesh]:
    yield from (
        (one for one in meshes_of(cluster) if len(one.sizes) <= 2) if mesh is None else (mesh,)
    )
