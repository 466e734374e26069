"""The number of microbatches: one, or if memory is short as many as make the step shortest.

A microbatch holds fewer activations, and costs more: ops on smaller shards, parameters gathered
again, gradients added. So one microbatch is planned first, without a memory limit. If the best plan
fits, that is the number. If not, the search begins at the number in which it would fit as it is;
from there it goes to fewer, in which ops run again, or to more, as long as the step gets shorter.
Approximation: each number is about twice the one before; those beyond the first that is slower are
not looked at, nor any if the step is nearly that of one microbatch without a limit; and of the meshes
only the best few of the number before are, less those that a lower bound rules out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from cost_models.errors import NoPlan
from planner.graph.layout import Mesh
from planner.microbatch import CannotSplit
from planner.search.budget import Budget
from planner.search.misfit import Misfit
from planner.search.proposals import Candidate, Proposal, Proposer
from planner.search.searched import Searched, bytes_of_state

__all__ = ["best_meshes", "best_number", "doublings", "microbatches_needed", "unlimited"]

#: The meshes searched with another number of microbatches, of those searched before: the fastest, or
#: the leanest if none fits.
_MESHES = 4

#: The share of the step time that another number must save to be taken, and that it must promise to
#: save to be tried.
_WORTH, _PROMISED = 0.005, 0.02


def doublings(possible: Sequence[int]) -> Iterator[int]:
    """Of the possible numbers above 1, in order, each that is at least twice the one before."""
    last = 1
    for number in sorted(possible):
        if number >= 2 * last:
            yield number
            last = number


def unlimited(proposer: Proposer, proposals: Sequence[Proposal]) -> Candidate:
    """The best proposal as it is without a memory limit, simulated."""
    return proposer.candidate(min(proposals, key=lambda proposal: proposal.solution.objective))


def microbatches_needed(proposer: Proposer, candidate: Candidate) -> float:
    """About the least number of microbatches in which a plan in one would fit as it is: what it
    holds beside parameters and optimizer's state shrinks with a microbatch, and the state can be in
    pieces on all devices. 1 if it fits, infinite if the state alone does not."""
    if candidate.fits(proposer.capacity):
        return 1.0
    held = candidate.prediction.memory_bytes
    rest = sum(held.values()) - held["parameters"] - held["optimizer"]
    room = proposer.capacity - bytes_of_state(proposer) / proposer.cluster.num_devices
    return rest / room if room > 0 else math.inf


def best_number(
    at: Callable[[int, list[Mesh]], Searched],
    numbers: Sequence[int],
    budget: Budget,
    *,
    start: int,
    ideal: float,
    first: Searched | Misfit | list[Mesh],
    better: Callable[[int, list[Mesh], float], list[Mesh]],
) -> Searched | Misfit:
    """The best of the searches `at` some of the `numbers` of microbatches, around `start`; `first`
    is the search at `start`, or the meshes for it. No step is expected to be shorter than `ideal`
    seconds. Of some meshes, those on which a step at a number may be `better` than a given one are
    searched. If nothing fits, the leanest of the misfits. Raises CannotSplit if the batch cannot be
    cut at all."""
    place = numbers.index(start)
    fewer, more = [*reversed(numbers[:place])], [*numbers[place + 1 :]]
    best = first
    while isinstance(best, list):
        try:
            best = _tried(at, start, best)
        except CannotSplit:
            raise
        except NoPlan:  # microbatches of fewer samples than a data axis that was asked for
            start, more = fewer.pop(0), []
    for way in (fewer if isinstance(best, Searched) else [], more):
        began = best
        for number in way:
            if budget.over() or _step_time(best) <= ideal * (1 + _PROMISED):
                return best
            meshes, worth = _meshes(best), _step_time(best) * (1 - _WORTH)
            try:
                if worth < math.inf:
                    meshes = better(number, meshes, worth)
                if not meshes:
                    break
                found = _tried(at, number, meshes)
            except CannotSplit:
                raise
            except NoPlan:
                break
            if not _is_better(found, best):
                break
            best = found
        if best is not began:
            break
    return best


def _tried(
    at: Callable[[int, list[Mesh]], Searched], number: int, meshes: list[Mesh]
) -> Searched | Misfit:
    try:
        return at(number, meshes)
    except Misfit as misfit:
        return misfit


def _is_better(found: Searched | Misfit, best: Searched | Misfit) -> bool:
    if isinstance(best, Searched):
        return isinstance(found, Searched) and found.step_time_s < best.step_time_s * (1 - _WORTH)
    return isinstance(found, Searched) or _held(found) < _held(best)


def _step_time(found: Searched | Misfit) -> float:
    return found.step_time_s if isinstance(found, Searched) else math.inf


def _held(misfit: Misfit) -> int:
    return misfit.least.prediction.total_memory_bytes


def best_meshes(proposals: Sequence[Proposal]) -> list[Mesh]:
    """The meshes of the best proposals, best first."""
    ordered = sorted(proposals, key=lambda proposal: proposal.solution.objective)
    return list({proposal.mesh.sizes: proposal.mesh for proposal in ordered}.values())[:_MESHES]


def _meshes(best: Searched | Misfit) -> list[Mesh]:
    """The meshes of the fastest candidates that fit, then those of the best proposals, whose plans
    may have needed too much memory; or those of the leanest candidates if none fits."""
    if isinstance(best, Searched):
        capacity = best.proposer.capacity
        fitting = [c for c in best.candidates if c.fits(capacity)]
        ordered = sorted(fitting, key=lambda c: c.prediction.step_time_s)
        meshes = [*(c.mesh for c in (best.best, *ordered)), *best_meshes(best.proposals)]
    else:
        leanest = sorted(best.candidates, key=lambda c: c.prediction.total_memory_bytes)
        meshes = [candidate.mesh for candidate in leanest]
    return list({mesh.sizes: mesh for mesh in meshes}.values())[:_MESHES]
