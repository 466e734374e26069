"""The groups of mesh axes and their cells: which ranks of a group lie on one unit of the cluster (a
node, or a block of nodes), without a walk over all ranks of a large mesh.

The mesh is laid on consecutive devices in row-major order, so along an axis the cells repeat: two
ranks that are a period, `width / gcd(width, stride)` steps of the axis, apart have the same place
in units of `width` devices. A mesh in which each axis keeps the rest and two periods has the
beginning, the end and every crossing from one period to the next, and so every kind of cell and of
group that the whole mesh has. Only the number of units of a group is read from the whole mesh.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.errors import BadValue

__all__ = ["Cells", "Groups", "Ints", "groups_of", "unique_rows"]

Ints = NDArray[np.int64]
#: Places of a unit in one word of a bit mask: a signed word of 64 bits has 63 that are safe.
_WORD = 63


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of all groups, group by group. Of cell c: `group[c]`, `unit[c]`, and `count[c]`
    ranks, the places of which in their unit are `patterns[pattern[c]]`. `starts` are the first
    cells of the groups, `active[u]` the ranks on unit u."""

    group: Ints
    unit: Ints
    count: Ints
    pattern: Ints
    patterns: tuple[tuple[int, ...], ...]
    starts: Ints
    active: Ints

    @property
    def spans(self) -> NDArray[np.bool_]:
        """For each cell, whether its group is on other units too."""
        return (np.diff(self.starts, append=len(self.group)) > 1)[self.group]

    def least(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """For each group, the least of its cells' values."""
        return np.minimum.reduceat(values, self.starts)

    def most(self, values: Ints) -> Ints:
        """For each group, the largest of its cells' values."""
        return np.maximum.reduceat(values, self.starts)


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of every kind that a mesh has. `ranks[g]` are the places on the cluster of the members
    of group g, in mesh order, in a mesh without the repetitions; `firsts[g]` is the place of its
    first member in the whole mesh, `steps` what lies between that and the other members."""

    ranks: Ints
    firsts: Ints
    steps: Ints
    width: int

    @property
    def phases(self) -> Ints:
        """Groups of one phase lie on units in the same way."""
        return self.firsts % self.width

    def cells(self, width: int) -> Cells:
        """The cells on units of `width` devices."""
        size = self.ranks.shape[1]
        units = self.ranks // width
        begins = np.ones(units.shape, bool)
        begins[:, 1:] = units[:, 1:] != units[:, :-1]
        cells = np.flatnonzero(begins)
        pattern, patterns = _patterns((self.ranks % width).ravel(), cells, width)
        group, unit = cells // size, units.ravel()[cells]
        count = np.diff(cells, append=units.size)
        return Cells(
            group=group,
            unit=unit,
            count=count,
            pattern=pattern,
            patterns=patterns,
            starts=np.flatnonzero(np.diff(group, prepend=-1)),
            active=np.bincount(unit, count).astype(np.int64),
        )

    def num_units(self, groups: Ints, width: int) -> Ints:
        """The number of units of `width` devices that each of `groups` is on, in the whole mesh."""
        units = (self.firsts[groups, None] + self.steps) // width
        return np.asarray(1 + np.count_nonzero(np.diff(units, axis=1), axis=1), np.int64)


def groups_of(
    mesh_sizes: tuple[int, ...], axes: tuple[int, ...], *, width: int, first: int = 0
) -> Groups:
    """The groups of ranks that differ only on `axes`, for units of `width` devices and of its
    divisors; the mesh begins at place `first` of its first unit. Raises `BadValue` for an axis that
    the mesh does not have."""
    if not set(axes) <= set(range(len(mesh_sizes))):
        raise BadValue(f"axes {axes} are not axes of a mesh of {len(mesh_sizes)} axes")
    strides = _strides(mesh_sizes)
    periods = tuple(width // math.gcd(width, stride) for stride in strides)
    kept = tuple(
        min(size, size % period + 2 * period)
        for size, period in zip(mesh_sizes, periods, strict=True)
    )
    inside = tuple(axis for axis in range(len(mesh_sizes)) if axis in axes)
    others = tuple(axis for axis in range(len(mesh_sizes)) if axis not in axes)
    laid = np.arange(math.prod(kept), dtype=np.int64).reshape(kept)
    size = math.prod(kept[axis] for axis in inside)

    def along(axis: int, whole: bool) -> Ints:
        """The steps of an axis in the whole mesh. A step that is kept has its own phase there, and
        its own distance from the nearer end."""
        at = np.arange(mesh_sizes[axis] if whole else kept[axis], dtype=np.int64)
        if not whole:
            at[periods[axis] :] += mesh_sizes[axis] - kept[axis]
        return at * strides[axis]

    return Groups(
        ranks=laid.transpose((*others, *inside)).reshape(-1, size) + first,
        firsts=_sums(along(axis, whole=False) for axis in others) + first,
        steps=_sums(along(axis, whole=True) for axis in inside),
        width=width,
    )


def _strides(mesh_sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(mesh_sizes[axis + 1 :]) for axis in range(len(mesh_sizes)))


def _sums(terms: Iterator[Ints]) -> Ints:
    """All sums of one element of each of the terms, the last fastest."""
    out = np.zeros(1, np.int64)
    for term in terms:
        out = (out[:, None] + term).ravel()
    return out


def _patterns(local: Ints, cells: Ints, width: int) -> tuple[Ints, tuple[tuple[int, ...], ...]]:
    """The number of each cell's set of places, and the different sets."""
    words = []
    for low in range(0, width, _WORD):
        here = (local >= low) & (local < low + _WORD)
        bits = np.where(here, np.int64(1) << np.where(here, local - low, 0), 0)
        words.append(np.bitwise_or.reduceat(bits, cells))
    example, pattern = unique_rows(words)
    ends = np.append(cells, len(local))
    return pattern, tuple(tuple(local[ends[c] : ends[c + 1]].tolist()) for c in example)


def unique_rows(columns: list[NDArray[np.int64]] | list[NDArray[np.float64]]) -> tuple[Ints, Ints]:
    """The first row of each kind of row, and the kind of every row."""
    kind = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        _, number = np.unique(column, return_inverse=True)
        _, kind = np.unique(kind * (int(number.max()) + 1) + number, return_inverse=True)
    _, example = np.unique(kind, return_index=True)
    return example, kind
