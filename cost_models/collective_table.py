"""Measured collectives: seconds, interpolated log-log in bytes and between the group sizes that
were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.machine import CollectiveRow

__all__ = ["MeasuredTable", "measured_tables"]


@dataclass(frozen=True, slots=True)
class MeasuredTable:
    """Seconds by bytes for one kind and group size: (log bytes, log seconds), bytes rising."""

    log_nbytes: NDArray[np.float64]
    log_seconds: NDArray[np.float64]

    def time(self, nbytes: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds at `nbytes` > 0: log-log between points; those of the first point below it;
        proportional to bytes above the last."""
        x = np.log(nbytes)
        inside = np.interp(x, self.log_nbytes, self.log_seconds)
        return np.asarray(np.exp(inside + np.maximum(0.0, x - self.log_nbytes[-1])))


def measured_tables(
    rows: Sequence[CollectiveRow], group_size: int, num_groups: int
) -> dict[str, MeasuredTable]:
    """kind -> table for groups of `group_size`, of which `num_groups` run at once.

    Uses the rows of the same group size or of the two sizes around it (log-log in the size; the
    nearest beyond the ends), and at each size those of the nearest number of groups. A kind without
    rows is left out: it keeps the formulas.
    """
    out = {}
    for kind in sorted({row.kind for row in rows}):
        mine = [row for row in rows if row.kind == kind]
        sizes = sorted({row.group_size for row in mine})
        below = max((s for s in sizes if s <= group_size), default=sizes[0])
        above = min((s for s in sizes if s >= group_size), default=sizes[-1])
        low, high = (_at_size(mine, size, num_groups) for size in (below, above))
        share = 0.0 if below == above else float(np.log(group_size / below) / np.log(above / below))
        grid = np.union1d(low.log_nbytes, high.log_nbytes)
        seconds = (1 - share) * np.log(low.time(np.exp(grid))) + share * np.log(
            high.time(np.exp(grid))
        )
        out[kind] = MeasuredTable(grid, np.maximum.accumulate(seconds))
    return out


def _at_size(rows: Sequence[CollectiveRow], size: int, num_groups: int) -> MeasuredTable:
    """The table at one measured group size. Rows of the same bytes are averaged, and seconds are
    made never to fall with bytes."""
    nearest = min(
        {row.num_groups for row in rows if row.group_size == size},
        key=lambda g: (abs(g - num_groups), g),
    )
    points: dict[float, list[float]] = {}
    for row in rows:
        if row.group_size == size and row.num_groups == nearest:
            points.setdefault(row.nbytes, []).append(row.seconds)
    nbytes = sorted(points)
    seconds = np.maximum.accumulate([np.mean(points[n]) for n in nbytes])
    return MeasuredTable(np.log(nbytes), np.log(seconds))
