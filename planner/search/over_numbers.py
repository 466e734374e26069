"""The search over numbers of microbatches, with the baselines of the best one so far on a second
core.

Proposer of the asked number -> the best `Searched` of all numbers worth trying (`microbatches`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module

from planner.dims.subdims import infer
from planner.graph.layout import Mesh
from planner.microbatch import CannotSplit, possible_microbatches
from planner.plans.plan import Alternative
from planner.search.baselines import comparisons
from planner.search.bounds import GOOD, bounded
from planner.search.choose import choose
from planner.search.microbatches import (
    best_meshes,
    best_number,
    doublings,
    microbatches_needed,
    unlimited,
)
from planner.search.misfit import Misfit
from planner.search.proposals import Proposer
from planner.search.searched import (
    Progress,
    Searched,
    best_of,
    bytes_of_state,
    meshes_to_search,
    proposals_of,
    proposer_of,
)
from planner.search.second_process import Beside, beside
from planner.strategy.pinned import check_pins
from planner.trace.traced import Traced

__all__ = ["searched_over_numbers"]

#: Processes forked for baselines if any number of microbatches may be best: for one microbatch, the
#: number that the search begins with, and the best.
_PROCESSES = 3


def searched_over_numbers(
    proposer: Proposer,
    mesh: Mesh | None,
    progress: Progress,
    *,
    own_process: bool,
    traced: Traced | None,
    compared: bool = True,
) -> tuple[Searched, str]:
    """The best plans with the asked number of microbatches or, if `traced` is given and these are
    short of memory, with more; and why the batch cannot be cut. `compared`: with the baselines.
    Raises Misfit if nothing fits."""
    meshes = meshes_to_search(proposer, mesh)
    if own_process:
        _import_for_both(proposer)
    numbers = _Numbers(proposer, mesh, traced)
    with beside(
        numbers.comparisons,
        lambda: proposer.budget.left / 2,
        own_process=own_process,
        waiting=0 if not compared else 1 if traced is None else _PROCESSES,
    ) as rows:
        numbers.rows = rows if compared else None
        searched, why_one = _best(numbers, meshes, progress)
        if isinstance(searched, Misfit):
            searched.why_one = why_one
            raise searched
        if compared and not searched.rows:
            searched = _compared(searched, rows)
    return searched, why_one


class _Numbers:
    """The searches at several numbers of microbatches. The baselines of the best so far are made
    beside, if there are `rows`."""

    def __init__(self, first: Proposer, mesh: Mesh | None, traced: Traced | None) -> None:
        self.first, self.mesh, self.traced = first, mesh, traced
        self.asked = first.ask.microbatches
        self.proposers = {self.asked: first}
        self.rows: Beside[Alternative] | None = None
        self.best = math.inf

    def proposer(self, number: int) -> Proposer:
        """The proposer at a number of microbatches, made once. Raises CannotSplit."""
        if number not in self.proposers:
            assert self.traced is not None
            first, ask = self.first, replace(self.first.ask, microbatches=number)
            made = proposer_of(ask, first.cluster, first.pins, first.budget, self.traced)
            made.is_short_of_memory = True  # or no other number would be tried
            self.proposers[number] = made
        return self.proposers[number]

    def comparisons(self, number: int) -> Sequence[Callable[[], Alternative]]:
        """The baselines at a number of microbatches."""
        return comparisons(self.proposer(number), self.mesh)

    def begin(self, number: int) -> None:
        """Starts the baselines of a number, if there are any."""
        if self.rows is not None:
            self.rows.begin(number)

    def asked_for(self, meshes: list[Mesh], progress: Progress) -> Searched | Misfit:
        """The search at the number that was asked for, with its baselines."""
        rows = tuple if self.rows is None else partial(self.rows.results, self.asked)
        try:
            found = best_of(self.first, meshes, rows, progress)
        except Misfit as misfit:
            return misfit
        self.best = found.step_time_s
        return found

    def search(self, number: int, meshes: list[Mesh]) -> Searched:
        """The search of some meshes at a number, without baselines. Raises Misfit if nothing
        fits."""
        proposer = self._checked(number, meshes)
        if self.best == math.inf:
            self.begin(number)
        found = best_of(proposer, meshes, tuple, _quietly)
        if found.step_time_s < self.best:
            self.best = found.step_time_s
            self.begin(number)
        return found

    def better(self, number: int, meshes: list[Mesh], step: float) -> list[Mesh]:
        """The meshes on which some plan at a number may be faster than `step`: no bound rules that
        out."""
        proposer = self._checked(number, meshes)
        proposals, _ = proposals_of(proposer, meshes, _quietly)
        tables = {p.mesh: (p.table, p.solution.choice) for p in proposals}

        def seconds() -> float:
            return max(1.0, proposer.budget.left / 2)

        return [
            mesh
            for mesh, table in tables.items()
            if bounded([table], step / (1 - GOOD), seconds) < step
        ]

    def _checked(self, number: int, meshes: list[Mesh]) -> Proposer:
        proposer = self.proposer(number)
        if number != self.asked:
            check_pins(proposer.model, meshes, proposer.pins)
        return proposer


def _quietly(what: str, done: float) -> None:
    """Tells nobody how far a search is."""


def _best(
    numbers: _Numbers, meshes: list[Mesh], progress: Progress
) -> tuple[Searched | Misfit, str]:
    """The best of all numbers worth trying, and why the batch cannot be cut."""
    proposer, traced = numbers.first, numbers.traced
    numbers.begin(numbers.asked)
    if traced is None:
        return numbers.asked_for(meshes, progress), ""
    proposals, _ = proposals_of(proposer, meshes, progress)
    ideal = unlimited(proposer, proposals)
    needed, start = microbatches_needed(proposer, ideal), 1
    possible: tuple[int, ...] = (1,)
    if needed > 1:
        possible = (1, *doublings(possible_microbatches(traced.graph, infer(traced.graph))))
        start = next((number for number in possible if number >= needed), 1)
    first = numbers.asked_for(meshes, progress) if start == 1 else best_meshes(proposals)
    if len(possible) == 1 or (start == 1 and not proposer.is_short_of_memory):
        assert not isinstance(first, list)
        return first, ""
    progress("trying microbatches", 0.75)
    try:
        return best_number(
            numbers.search,
            possible,
            proposer.budget,
            start=start,
            ideal=ideal.prediction.step_time_s,
            first=first,
            better=numbers.better,
        ), ""
    except CannotSplit as reason:
        if isinstance(first, list):
            first = numbers.asked_for(meshes, progress)
        return first, str(reason)


def _compared(searched: Searched, rows: Beside[Alternative]) -> Searched:
    """The search with its baselines, in the same number of microbatches."""
    proposer = searched.proposer
    found = rows.results(proposer.ask.microbatches)
    best, found = choose(proposer, [], found, whole=[searched.best])
    return replace(searched, best=best, rows=found)


def _import_for_both(proposer: Proposer) -> None:
    """Imports compiled code before the fork, if one device cannot hold all parameters with their
    optimizer's state: then the baselines need it to look for the leanest plan, and large tables
    need it too. Otherwise each process would spend half a second on the import."""
    if bytes_of_state(proposer) > proposer.capacity:
        import_module("planner.solver.relax.lagrange")
