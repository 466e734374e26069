"""Meshes and layouts: where the pieces of a tensor are.

A tensor dim is an ordered product of sub-dims; sub-dims are numbered flat, over all dims of the
tensor. A layout gives one `Placement` for each mesh axis. Where several axes split one sub-dim, the
earlier axis is the outer one.

A split need not divide: n elements on k shards are n mod k pieces of ceil(n/k), then pieces of
floor(n/k), each contiguous; a later axis splits each of those pieces in the same way. No piece is
empty, and the piece at place 0 of every axis is the largest: "the shard", without a rank, means
that one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cost_models.errors import BadValue

__all__ = [
    "PARTIAL_MAX",
    "PARTIAL_SUM",
    "REPLICATE",
    "Layout",
    "Mesh",
    "SubShape",
    "is_partial",
    "is_split",
    "local_sizes",
    "local_shape",
    "piece_sizes",
    "show_layout",
    "start_of",
]

#: A placement on one axis is an int: k >= 0 is "split at flat sub-dim k"; the others are below.
Placement = int
REPLICATE: Placement = -1
PARTIAL_SUM: Placement = -2
PARTIAL_MAX: Placement = -3

#: One placement for each mesh axis.
Layout = tuple[Placement, ...]

#: The sub-dim sizes of every dim of a tensor: `((4, 8), (16,))` is a tensor of shape (32, 16).
SubShape = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Mesh:
    """Named axes over consecutive devices. The last axis varies fastest: neighbours on it are
    adjacent devices."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.sizes) or len(set(self.names)) != len(self.names):
            raise BadValue(
                f"a mesh needs one distinct name per axis, got {self.names} for sizes {self.sizes}"
            )

    @property
    def num_devices(self) -> int:
        return math.prod(self.sizes)

    def coordinate(self, rank: int) -> tuple[int, ...]:
        """The position of `rank` on every axis."""
        out = []
        for size in reversed(self.sizes):
            out.append(rank % size)
            rank //= size
        return tuple(reversed(out))

    def position(self, axes: tuple[int, ...], rank: int) -> int:
        """The linear position of `rank` on `axes`; the earlier axis is the outer one."""
        place, out = self.coordinate(rank), 0
        for axis in axes:
            out = out * self.sizes[axis] + place[axis]
        return out

    def groups(self, axes: tuple[int, ...]) -> list[list[int]]:
        """All groups of ranks that differ only on `axes`; in each, ranks in mesh order."""
        found: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.num_devices):
            place = self.coordinate(rank)
            rest = tuple(p for axis, p in enumerate(place) if axis not in axes)
            found.setdefault(rest, []).append(rank)
        return list(found.values())

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in zip(self.names, self.sizes, strict=True))


def is_split(placement: Placement) -> bool:
    """Whether the placement splits a sub-dim."""
    return placement >= 0


def is_partial(placement: Placement) -> bool:
    """Whether the placement holds terms that are still to be reduced."""
    return placement <= PARTIAL_SUM


def piece_sizes(size: int, counts: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of all pieces of a sub-dim split by axes of sizes `counts`, the first axis
    outermost; in the order of the ranks of their group."""
    pieces: tuple[int, ...] = (size,)
    for count in counts:
        pieces = tuple(
            piece // count + (at < piece % count) for piece in pieces for at in range(count)
        )
    return pieces


def start_of(size: int, count: int, place: int) -> int:
    """Where piece number `place` of `count` begins."""
    return size // count * place + min(place, size % count)


def local_sizes(
    flat: tuple[int, ...],
    layout: Layout,
    mesh_sizes: tuple[int, ...],
    place: tuple[int, ...] | None = None,
) -> tuple[int, ...] | None:
    """The flat sub-dim sizes of the shard at `place` on the mesh (by default the largest shard), or
    None if a sub-dim has fewer elements than shards."""
    out, uneven = list(flat), False
    for axis, placement in enumerate(layout):
        if placement >= 0:
            size, count = out[placement], mesh_sizes[axis]
            if size % count == 0:
                out[placement] = size // count
            else:
                uneven = True
                out[placement] = size // count + (
                    (0 if place is None else place[axis]) < size % count
                )
    return tuple(out) if not uneven or _none_empty(flat, layout, mesh_sizes) else None


def _none_empty(flat: tuple[int, ...], layout: Layout, mesh_sizes: tuple[int, ...]) -> bool:
    shards = [1] * len(flat)
    for axis, placement in enumerate(layout):
        if placement >= 0:
            shards[placement] *= mesh_sizes[axis]
    return all(size >= count or count == 1 for size, count in zip(flat, shards, strict=True))


def local_shape(
    subshape: SubShape,
    layout: Layout,
    mesh_sizes: tuple[int, ...],
    place: tuple[int, ...] | None = None,
) -> tuple[int, ...]:
    """The shape of the shard at `place` (by default the largest shard)."""
    flat = local_sizes(tuple(s for dim in subshape for s in dim), layout, mesh_sizes, place)
    assert flat is not None, (subshape, layout, mesh_sizes)
    shape, at = [], 0
    for dim in subshape:
        shape.append(math.prod(flat[at : at + len(dim)]))
        at += len(dim)
    return tuple(shape)


def show_layout(layout: Layout) -> str:
    """`S(0) R P` as PyTorch prints placements."""
    words = {REPLICATE: "R", PARTIAL_SUM: "P", PARTIAL_MAX: "P(max)"}
    return " ".join(words.get(p, f"S({p})") for p in layout)
