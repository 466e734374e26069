"""Meshes and layouts: where the pieces of a tensor are.

A tensor dim is an ordered product of sub-dims; sub-dims are numbered flat, over all dims of the tensor. A layout gives
one `Placement` for each mesh axis. Where several axes split one sub-dim, the earlier axis is the outer one.
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
    "show_layout",
]

#: A placement on one axis is an int: k >= 0 is "split at flat sub-dim k"; the others stand here.
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
    """Named axes over consecutive devices; the last axis is the fastest, its neighbours adjacent devices."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.sizes) or len(set(self.names)) != len(self.names):
            raise BadValue(f"a mesh needs one distinct name an axis, got {self.names} for sizes {self.sizes}")

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


def local_sizes(flat: tuple[int, ...], layout: Layout, mesh_sizes: tuple[int, ...]) -> tuple[int, ...] | None:
    """The flat sub-dim sizes of one shard, or None where an axis does not divide its sub-dim."""
    out = list(flat)
    for axis, placement in enumerate(layout):
        if placement >= 0:
            if out[placement] % mesh_sizes[axis]:
                return None
            out[placement] //= mesh_sizes[axis]
    return tuple(out)


def local_shape(subshape: SubShape, layout: Layout, mesh_sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one shard of a tensor."""
    flat = local_sizes(tuple(s for dim in subshape for s in dim), layout, mesh_sizes)
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
