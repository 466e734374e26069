"""A rank's part of the batch, and of it the pieces of the microbatches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cost_models.errors import BadValue
from planner.graph.layout import Mesh
from planner.program.program import InputState, Program
from runtime.parameters import cut

__all__ = ["local_batch", "pieces_of"]


def local_batch(
    program: Program, batch: Sequence[Tensor], example: Sequence[Tensor], rank: int
) -> dict[int, Tensor]:
    """A rank's part of the whole batch, by value id. A tensor that is split into microbatches has
    one more dim, the first: the microbatch. `example` is the batch that the plan was made for.

    Raises BadValue if a tensor of the batch has another shape.
    """
    out: dict[int, Tensor] = {}
    for state in program.inputs:
        if state.kind == "input":
            full = batch[int(state.name)]
            _check(state, full, example)
            out[state.value] = _local(state, full, program, rank)
    return out


def pieces_of(program: Program, local: dict[int, Tensor], microbatch: int) -> dict[int, Tensor]:
    """What a microbatch reads of a rank's part of the batch, by value id: views, no copies."""
    split = {state.value for state in program.inputs if state.pieces is not None}
    return {value: t[microbatch] if value in split else t for value, t in local.items()}


def _check(state: InputState, full: Tensor, example: Sequence[Tensor]) -> None:
    expected = tuple(math.prod(dim) for dim in state.subshape)
    if state.pieces is not None:
        expected = tuple(example[int(state.name)].shape)
    if tuple(full.shape) != expected:
        raise BadValue(
            f"batch tensor {state.name} has shape {tuple(full.shape)}: the plan was made for {expected}"
        )


def _local(state: InputState, full: Tensor, program: Program, rank: int) -> Tensor:
    mesh: Mesh = program.mesh
    dtype = getattr(torch, state.dtype)
    if state.pieces is None:
        return cut(full, state.subshape, state.layout, mesh, rank).to(dtype)
    outer, here = state.pieces
    shape = tuple(math.prod(dim) for dim in state.subshape)
    by_microbatch = full.reshape(outer, program.microbatches, here, -1)
    pieces = [
        cut(by_microbatch[:, number].reshape(shape), state.subshape, state.layout, mesh, rank)
        for number in range(program.microbatches)
    ]
    return torch.stack(pieces).to(dtype)
