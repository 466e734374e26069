"""Seconds of a collective on the links that its groups really cross: the best algorithm and
protocol for each size.

Of the lines of all algorithms and protocols (`collective_algorithms`) the fastest is taken, and of
the groups the slowest, since all groups of an axis run together. A measured table takes precedence.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import overload

import numpy as np
from numpy.typing import NDArray

from cost_models.collective_algorithms import Line, fastest_lines
from cost_models.collective_table import MeasuredTable, measured_tables
from cost_models.errors import unknown_name
from cost_models.group_links import GroupLinks, group_links, link_class
from cost_models.library import COLLECTIVES
from cost_models.machine import Cluster

__all__ = ["CollectiveModel", "collective_model", "collective_time"]


class CollectiveModel:
    """The seconds of every collective over `axes` of one mesh on one cluster; made by
    `collective_model`."""

    __slots__ = ("_lines", "_measured", "link_class", "links")

    def __init__(
        self, cluster: Cluster, mesh_sizes: tuple[int, ...], axes: tuple[int, ...]
    ) -> None:
        self.links: tuple[GroupLinks, ...] = group_links(cluster, mesh_sizes, axes)
        self.link_class = link_class(self.links)
        self._lines: dict[str, tuple[tuple[Line, ...], ...]] = {
            kind: tuple(fastest_lines(cluster, links, kind) for links in self.links)
            for kind in COLLECTIVES[:-1]
        }
        num_groups = math.prod(size for axis, size in enumerate(mesh_sizes) if axis not in axes)
        local = all(links.num_nodes == 1 for links in self.links)
        self._measured: dict[str, MeasuredTable] = {}
        if self.links and local and cluster.collective_table:
            self._measured = measured_tables(
                cluster.collective_table, self.links[0].size, num_groups
            )

    @overload
    def time(self, kind: str, nbytes: float) -> float: ...
    @overload
    def time(self, kind: str, nbytes: NDArray[np.float64]) -> NDArray[np.float64]: ...
    def time(self, kind: str, nbytes: float | NDArray[np.float64]) -> float | NDArray[np.float64]:
        """Seconds of `kind` for `nbytes` of the whole logical buffer (all-to-all: of a rank's
        buffer), a number or an array.

        0 for a `slice`, for groups of one and for 0 bytes. Never falls with `nbytes`. If the
        cluster has a measured table for this kind and the groups stay inside a node, the table
        takes precedence. Raises `UnknownName` for other kinds.
        """
        if kind not in COLLECTIVES:
            raise unknown_name("collective", kind, COLLECTIVES)
        silent = kind == "slice" or not self.links
        if isinstance(nbytes, np.ndarray):
            return np.zeros(nbytes.shape) if silent else self._array_time(kind, nbytes)
        if silent or nbytes <= 0:
            return 0.0
        table = self._measured.get(kind)
        if table is not None:
            return float(table.time(nbytes))
        return max(min(a + b * nbytes for a, b in lines) for lines in self._lines[kind])

    def least_per_byte(self, kind: str, most: float) -> float:
        """The fewest seconds a byte of any message of `kind` of at most `most` bytes. A line a +
        b n costs fewer a byte the longer it is; between two points of a measured table the
        seconds a byte rise or fall, so one end has the fewest."""
        table = self._measured.get(kind)
        knots: list[float] = (
            [] if table is None else [n for n in np.exp(table.log_nbytes).tolist() if n < most]
        )
        return min(float(self.time(kind, n)) / n for n in (most, *knots))

    def _array_time(self, kind: str, nbytes: NDArray[np.float64]) -> NDArray[np.float64]:
        table = self._measured.get(kind)
        if table is not None:
            seconds = table.time(np.maximum(nbytes, 1.0))
        else:
            seconds = np.max(
                [np.min([a + b * nbytes for a, b in lines], axis=0) for lines in self._lines[kind]],
                axis=0,
            )
        return np.where(nbytes > 0, seconds, 0.0)


@lru_cache(maxsize=4096)
def collective_model(
    cluster: Cluster, mesh_sizes: tuple[int, ...], axes: tuple[int, ...]
) -> CollectiveModel:
    """The model of the collectives over `axes` of a mesh of `mesh_sizes` on the first devices of
    `cluster`.

    Cached by the whole record of the cluster (compared figure by figure, not by name), the mesh and
    the axes.
    """
    return CollectiveModel(cluster, mesh_sizes, axes)


def collective_time(
    cluster: Cluster, mesh_sizes: tuple[int, ...], axes: tuple[int, ...], kind: str, nbytes: float
) -> float:
    """Seconds of one collective of `kind` in all groups of `axes` at once; see
    `CollectiveModel.time`."""
    return collective_model(cluster, mesh_sizes, axes).time(kind, nbytes)
