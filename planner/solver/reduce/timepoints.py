"""Which times matter: memory is checked only at times at which it can be over the limit.

Between two times at which a node starts or ends to hold memory, the same nodes hold it: only the
time with the least room matters. A time at which a subset of another time's nodes hold, with no
less room, is implied by the other. A time at which all nodes' largest usages fit never binds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.solver.problem.problem import Array, Span
from planner.solver.reduce.working import Labels, Working

Flags = NDArray[np.bool_]

__all__ = ["times"]


def times(work: Working) -> bool:
    """Drops the times that cannot bind or are implied by others; returns whether any went."""
    if not work.limited or not len(work.room):
        return False
    while True:
        kept = _telling(work)
        if len(kept) == len(work.room):
            return False
        _keep(work, kept)


def _telling(work: Working) -> Labels:
    """The times to keep: one for each maximal set of nodes that hold memory together."""
    horizon = len(work.room)
    starts = np.zeros(horizon + 1, dtype=bool)
    ends = np.zeros(horizon + 1, dtype=bool)
    most = np.zeros(horizon + 1)
    for node in work.nodes():
        for spans, nbytes in work.parts[node].items():
            largest = float(nbytes.max())
            for start, end, factor in spans:
                starts[start] = ends[end] = True
                most[start] += largest * factor
                most[end] -= largest * factor
    return _maximal(work.room, starts, ends, np.cumsum(most)[:-1])


def _maximal(room: Array, starts: Flags, ends: Flags, most: Array) -> Labels:
    """One time per stretch between events, without stretches whose nodes all hold in the stretch
    before or after too, with no more room there. `most` is the memory at each time if all nodes
    hold their largest."""
    stretch = np.cumsum((starts | ends)[:-1])
    order = np.lexsort((room, stretch))
    first = order[np.unique(stretch[order], return_index=True)[1]]
    kept: list[int] = []
    for at in first.tolist():
        if most[at] <= room[at]:
            continue
        while kept and room[kept[-1]] >= room[at] and not ends[kept[-1] + 1 : at + 1].any():
            kept.pop()  # nothing ended since then: its nodes hold here too
        if kept and room[kept[-1]] <= room[at] and not starts[kept[-1] + 1 : at + 1].any():
            continue  # nothing started since then: all nodes that hold here held there too
        kept.append(at)
    return np.array(kept, dtype=np.int64)


def _keep(work: Working, kept: Labels) -> None:
    before = np.searchsorted(kept, np.arange(len(work.room) + 1))

    def renamed(span: Span) -> Span | None:
        start, end = int(before[span[0]]), int(before[span[1]])
        return (start, end, span[2]) if start < end else None

    work.retime(kept, renamed)
