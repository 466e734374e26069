"""Which times matter: memory is checked only where it can be too much.

Between two times at which a node starts or ends holding, the same nodes hold; of those times the
one with the least room says it all. A time at which a subset of another's nodes hold, with no less
room, says nothing new. And one at which all nodes' largest usages fit is always kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.solver.problem.problem import Array, Span
from planner.solver.reduce.working import Labels, Working

Flags = NDArray[np.bool_]

__all__ = ["times"]


def times(work: Working) -> bool:
    """Drops the times that say nothing; whether any went."""
    if not work.limited or not len(work.room):
        return False
    while True:
        kept = _telling(work)
        if len(kept) == len(work.room):
            return False
        _keep(work, kept)


def _telling(work: Working) -> Labels:
    """The times to keep: one a maximal set of nodes that hold together."""
    horizon = len(work.room)
    starts, ends, most = (
        np.zeros(horizon + 1, dtype=bool),
        np.zeros(horizon + 1, dtype=bool),
        np.zeros(horizon + 1),
    )
    for node in work.nodes():
        for spans, nbytes in work.parts[node].items():
            largest = float(nbytes.max())
            for start, end, factor in spans:
                starts[start] = ends[end] = True
                most[start] += largest * factor
                most[end] -= largest * factor
    return _maximal(work.room, starts, ends, np.cumsum(most)[:-1])


def _maximal(room: Array, starts: Flags, ends: Flags, most: Array) -> Labels:
    """Times in stretches between events; a stretch whose nodes are also those of the one before
    or after, and with no less room than there, goes. `most` is what is held when all hold their
    largest."""
    stretch = np.cumsum((starts | ends)[:-1])
    order = np.lexsort((room, stretch))
    first = order[np.unique(stretch[order], return_index=True)[1]]
    kept: list[int] = []
    for at in first.tolist():
        if most[at] <= room[at]:
            continue
        while kept and room[kept[-1]] >= room[at] and not ends[kept[-1] + 1 : at + 1].any():
            kept.pop()  # nothing ended since: its nodes hold here too
        if kept and room[kept[-1]] <= room[at] and not starts[kept[-1] + 1 : at + 1].any():
            continue  # nothing started since: all who hold here held there
        kept.append(at)
    return np.array(kept, dtype=np.int64)


def _keep(work: Working, kept: Labels) -> None:
    before = np.searchsorted(kept, np.arange(len(work.room) + 1))

    def renamed(span: Span) -> Span | None:
        start, end = int(before[span[0]]), int(before[span[1]])
        return (start, end, span[2]) if start < end else None

    work.retime(kept, renamed)
