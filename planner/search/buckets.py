"""The size of the buckets of gradients that a plan reduces them in: larger ones send in fewer
messages, smaller ones start earlier.

Candidate, lowered whole -> the same with the size under which its simulated step is shortest, of
those that fit the memory.
"""

from __future__ import annotations

from collections.abc import Callable

from planner.search.proposals import Candidate
from planner.strategy.message_costs import BUCKET_SIZES

__all__ = ["with_best_bucket"]

#: No size is looked for where communication that no compute hides is less than this share of the
#: step.
_EXPOSED = 0.01

#: Another size is worth it if the step is shorter by this share.
_WORTH = 1e-3


def with_best_bucket(
    candidate: Candidate, capacity: float, lowered: Callable[[int], Candidate]
) -> Candidate:
    """The candidate under the best size of bucket; `lowered` gives it under another. It climbs
    from its own size, first to larger ones and, if those are no better, to smaller ones: so most
    plans are simulated once or twice more."""
    step = candidate.prediction
    if step.exposed_communication_time_s < _EXPOSED * step.step_time_s and candidate.fits(capacity):
        return candidate
    at = BUCKET_SIZES.index(candidate.choices.bucket)
    for sizes in (BUCKET_SIZES[at + 1 :], BUCKET_SIZES[:at][::-1]):
        best = _climbed(candidate, sizes, capacity, lowered)
        if best is not candidate:
            return best
    return candidate


def _climbed(
    candidate: Candidate,
    sizes: tuple[int, ...],
    capacity: float,
    lowered: Callable[[int], Candidate],
) -> Candidate:
    best = candidate
    for size in sizes:
        other = lowered(size)
        if other.program == best.program or not _better(other, best, capacity):
            break
        best = other
    return best


def _better(other: Candidate, best: Candidate, capacity: float) -> bool:
    """Whether `other` fits and is faster; where `best` does not fit, whether it is nearer to
    that."""
    if not best.fits(capacity):
        return other.prediction.total_memory_bytes < best.prediction.total_memory_bytes
    return other.fits(capacity) and other.prediction.step_time_s < best.prediction.step_time_s * (
        1 - _WORTH
    )
