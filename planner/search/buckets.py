"""The size of the buckets in which a plan reduces gradients: larger buckets mean fewer messages,
smaller ones start earlier.

Candidate, lowered whole -> the same with the bucket size that gives the shortest simulated step, of
those that fit the memory.
"""

from __future__ import annotations

from collections.abc import Callable

from planner.search.proposals import Candidate
from planner.strategy.message_costs import BUCKET_SIZES

__all__ = ["with_best_bucket"]

#: Other sizes are tried only if exposed communication is at least this share of the step.
_EXPOSED = 0.01

#: Another size is worth it if the step is shorter by this share.
_WORTH = 1e-3


def with_best_bucket(
    candidate: Candidate, capacity: float, lowered: Callable[[int], Candidate]
) -> Candidate:
    """The candidate with the best bucket size; `lowered(size)` is the candidate with another. A
    hill climb from its own size, first to larger sizes and, if these are no better, to smaller
    ones: most plans are simulated once or twice more."""
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
    """Whether `other` fits and is faster than `best`; or, if `best` does not fit, is nearer to
    fitting."""
    if not best.fits(capacity):
        return other.prediction.total_memory_bytes < best.prediction.total_memory_bytes
    return other.fits(capacity) and other.prediction.step_time_s < best.prediction.step_time_s * (
        1 - _WORTH
    )
