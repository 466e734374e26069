"""Cuts full tensors into the shards of a layout, and assembles full tensors from shards.

Every rank builds the whole module from the same seed, so initial values do not depend on the plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from planner.graph.layout import (
    Layout,
    Mesh,
    SubShape,
    is_split,
    local_shape,
    piece_sizes,
    start_of,
)
from planner.program.program import Program
from planner.state.chance import seed_all
from planner.trace.alone import alone
from planner.workload.workload import Workload

__all__ = ["assemble", "build", "cut", "full_tensors", "shards"]


def build(make: Callable[[], Workload], seed: int) -> Workload:
    """The workload, initialised from `seed`: the same on every rank and under every plan
    (`runtime.alike` checks this)."""
    seed_all(seed)
    with alone():
        return make()


def cut(full: Tensor, subshape: SubShape, layout: Layout, mesh: Mesh, rank: int) -> Tensor:
    """The shard of `full` that `rank` holds, in memory of its own.

    Sub-dims are narrowed axis by axis: if several axes split one, the earlier axis is the outer.
    """
    piece = _narrow(full.reshape(_flat(subshape)), layout, mesh, rank)
    return piece.clone(memory_format=torch.contiguous_format).reshape(
        local_shape(subshape, layout, mesh.sizes, mesh.coordinate(rank))
    )


def assemble(pieces: Sequence[Tensor], subshape: SubShape, layout: Layout, mesh: Mesh) -> Tensor:
    """The full tensor whose shard on rank r is `pieces[r]`: the inverse of `cut`."""
    full = pieces[0].new_empty(_flat(subshape))
    for rank, piece in enumerate(pieces):
        place = _narrow(full, layout, mesh, rank)
        place.copy_(piece.reshape(place.shape))
    return full.reshape([math.prod(dim) for dim in subshape])


def shards(
    program: Program, workload: Workload, rank: int, device: torch.device
) -> dict[int, Tensor]:
    """The values held before the first step: parameters as stored and as updated, and buffers."""
    full = full_tensors(workload)
    out: dict[int, Tensor] = {}
    for state in program.parameters:
        for value, layout in ((state.value, state.stored), (state.shard, state.updated)):
            if value not in out:
                piece = cut(full[state.name], state.subshape, layout, program.mesh, rank)
                out[value] = piece.to(device, getattr(torch, state.dtype))
    for buffer in program.inputs:
        if buffer.kind == "buffer":
            piece = cut(full[buffer.name], buffer.subshape, buffer.layout, program.mesh, rank)
            out[buffer.value] = piece.to(device, getattr(torch, buffer.dtype))
    return out


def full_tensors(workload: Workload) -> Mapping[str, Tensor]:
    """The parameters, buffers and constants by name, detached."""
    return {name: tensor.detach() for name, tensor in workload.state().tensors.items()}


def _narrow(flat: Tensor, layout: Layout, mesh: Mesh, rank: int) -> Tensor:
    place = mesh.coordinate(rank)
    for axis, placement in enumerate(layout):
        if is_split(placement):
            size, count = flat.shape[placement], mesh.sizes[axis]
            flat = flat.narrow(
                placement,
                start_of(size, count, place[axis]),
                piece_sizes(size, (count,))[place[axis]],
            )
    return flat


def _flat(subshape: SubShape) -> tuple[int, ...]:
    return tuple(size for dim in subshape for size in dim)
