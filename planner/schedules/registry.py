"""The schedules by the names that a person types, and what each of them can have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cost_models.errors import BadValue, unknown_name
from planner.schedules import named
from planner.schedules.schedule import Schedule

__all__ = ["FOUND", "NAMES", "SCHEDULES", "Kind", "scheduled"]

#: The schedule that is found for the times of the stages (`found.py`), not written down here.
FOUND = "found"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How a schedule is made of (places, microbatches, chunks); how many chunks of stages a place
    can have, None for any from 2 on, 2 if none are asked for; whether backward is in two; the fault
    of a number of microbatches on so many places."""

    make: Callable[[int, int, int], Schedule]
    chunks: int | None = 1
    in_two: bool = False
    misfit: Callable[[int, int], str] = lambda places, microbatches: ""


def _uneven_rounds(places: int, microbatches: int) -> str:
    """Why microbatches do not divide into rounds, "" if they do."""
    number = named.rounds(places, microbatches)
    if microbatches % number == 0:
        return ""
    return (
        f"needs microbatches in {number} equal rounds, got {microbatches}: use "
        f"{_nearest(microbatches, lambda m: m % named.rounds(places, m) == 0)}"
    )


def _too_few(places: int, microbatches: int) -> str:
    """Why there are too few microbatches, "" if there are enough."""
    if microbatches >= 2 * places:
        return ""
    return f"needs at least 2 microbatches a rank, {2 * places}, got {microbatches}"


def _nearest(microbatches: int, legal: Callable[[int], bool]) -> str:
    """The nearest legal numbers below and above: `8 or 12`."""
    below = next(m for m in range(microbatches, 0, -1) if legal(m))
    above = next(m for m in range(microbatches, 2 * microbatches + 1) if legal(m))
    return f"{below} or {above}"


SCHEDULES = {
    "gpipe": Kind(make=lambda p, m, v: named.gpipe(p, m)),
    "1f1b": Kind(make=lambda p, m, v: named.one_f_one_b(p, m)),
    "interleaved": Kind(make=named.interleaved, chunks=None, misfit=_uneven_rounds),
    "zbh1": Kind(make=lambda p, m, v: named.zb_h1(p, m), in_two=True),
    "interleaved-zb": Kind(
        make=named.interleaved_zero_bubble, chunks=None, in_two=True, misfit=_uneven_rounds
    ),
    "zbv": Kind(make=lambda p, m, v: named.zbv(p, m), chunks=2, in_two=True),
    "dualpipev": Kind(
        make=lambda p, m, v: named.dualpipev(p, m), chunks=2, in_two=True, misfit=_too_few
    ),
}
#: What `--schedule` takes.
NAMES = (*SCHEDULES, FOUND)


def scheduled(name: str, places: int, microbatches: int, chunks: int | None = None) -> Schedule:
    """The schedule of a name for so many pipeline ranks, microbatches, and stages of a rank, by
    default as few as the schedule can have.

    Raises UnknownName, or BadValue with the nearest legal number if the schedule cannot have one of
    these.
    """
    if name not in SCHEDULES:
        raise unknown_name("schedule", name, list(NAMES))
    kind = SCHEDULES[name]
    for what, number in (("pipeline ranks", places), ("microbatches", microbatches)):
        if number < 1:
            raise BadValue(f"schedule {name!r} needs at least 1 of {what}, got {number}")
    chunks = chunks or kind.chunks or 2
    if kind.chunks is None and chunks < 2:
        raise BadValue(
            f"schedule {name!r} needs at least 2 stages a rank, got {chunks}: use 2, or "
            f"{'zbh1' if kind.in_two else '1f1b'!r}"
        )
    if kind.chunks is not None and chunks != kind.chunks:
        also = " or 'interleaved'" if kind.chunks == 1 else ""
        raise BadValue(
            f"schedule {name!r} has {kind.chunks} stage{'s' * (kind.chunks > 1)} a rank, got "
            f"{chunks}: use {kind.chunks}{also}"
        )
    if misfit := kind.misfit(places, microbatches):
        raise BadValue(f"schedule {name!r} on {places} pipeline ranks {misfit}")
    return kind.make(places, microbatches, chunks)
