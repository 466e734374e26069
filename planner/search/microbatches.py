"""The number of microbatches: more of them, as long as that pays.

A microbatch holds fewer activations, and costs more: ops on smaller shards, parameters gathered
again, gradients added. So one microbatch is searched first. Only if its plans are short of memory
are more tried, each time about twice as many, until the step gets no shorter. Approximation: numbers
between those tried, and beyond the first that is slower, are not looked at; of the meshes, only the
best few of the number before are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from cost_models.errors import NoPlan
from planner.graph.layout import Mesh
from planner.microbatch import CannotSplit
from planner.search.budget import Budget
from planner.search.misfit import Misfit
from planner.search.searched import Searched

__all__ = ["doublings", "with_more_microbatches"]

#: The meshes searched with more microbatches, of those searched before: the fastest, or the leanest
#: if none fits.
_MESHES = 4

#: The share of the step time that more microbatches must save to be taken.
_WORTH = 0.005


def doublings(possible: Sequence[int]) -> Iterator[int]:
    """Of the possible numbers above 1, in order, each that is at least twice the one before."""
    last = 1
    for number in sorted(possible):
        if number >= 2 * last:
            yield number
            last = number


def with_more_microbatches(
    first: Searched | Misfit,
    at: Callable[[int, list[Mesh]], Searched],
    possible: Sequence[int],
    budget: Budget,
) -> tuple[Searched | Misfit, str]:
    """The best of a search and of those `at` more microbatches on its best meshes; and why the
    batch cannot be cut, if it cannot (empty: it can). If nothing fits, the leanest of the misfits.
    """
    best = first
    for number in doublings(possible):
        if budget.over():
            break
        try:
            found: Searched | Misfit = at(number, _meshes(best))
        except Misfit as misfit:
            found = misfit
        except CannotSplit as reason:
            return best, str(reason)
        except NoPlan:  # microbatches of fewer samples than a data axis that was asked for
            break
        if not _is_better(found, best):
            break
        best = found
    return best, ""


def _is_better(found: Searched | Misfit, best: Searched | Misfit) -> bool:
    if isinstance(best, Searched):
        return isinstance(found, Searched) and found.step_time_s < best.step_time_s * (1 - _WORTH)
    return isinstance(found, Searched) or _held(found) < _held(best)


def _held(misfit: Misfit) -> int:
    return misfit.least.prediction.total_memory_bytes


def _meshes(best: Searched | Misfit) -> list[Mesh]:
    """The meshes of the fastest candidates that fit, or of the leanest if none does."""
    if isinstance(best, Searched):
        capacity = best.proposer.capacity
        fitting = [c for c in best.candidates if c.fits(capacity)]
        ordered = sorted(fitting, key=lambda c: c.prediction.step_time_s)
        ordered = [best.best, *ordered]
    else:
        ordered = sorted(best.candidates, key=lambda c: c.prediction.total_memory_bytes)
    distinct = {candidate.mesh.sizes: candidate.mesh for candidate in ordered}
    return list(distinct.values())[:_MESHES]
