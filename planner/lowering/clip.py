"""Lowers clipping by the global norm: squares of this rank's shards, one small all-reduce, scaling
of the gradients.

Gradients, as reduced for the update -> instructions, and the gradients that the update reads. A
shard that several ranks hold counts once: each adds its share of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from cost_models.memory import dtype_bytes
from planner.graph.layout import is_split
from planner.kernels.clip import CLIP_EPSILON
from planner.program.program import Communicate, Compute, Instruction, ParameterState, Ref
from planner.strategy.costing import Costing
from planner.strategy.message_costs import BUCKET_BYTES

__all__ = ["clip_gradients"]


def clip_gradients(
    gradients: Sequence[int],
    states: Sequence[ParameterState],
    shapes: Sequence[tuple[int, ...]],
    costing: Costing,
    new: Callable[[int], int],
) -> tuple[list[Instruction], tuple[int, ...]]:
    """The instructions, and the ids of the clipped gradients. `shapes` are those of the shards;
    `new(nbytes)` makes a value id."""
    split = {
        axis for state in states for axis, place in enumerate(state.updated) if is_split(place)
    }
    axes = tuple(sorted(split))
    wide = "float64" if any(state.dtype == "float64" for state in states) else "float32"
    nbytes = [_nbytes(state, shape) for state, shape in zip(states, shapes, strict=True)]
    squares = new(dtype_bytes(wide))
    out: list[Instruction] = [
        Compute(
            id="update.clip.square_sum",
            op="shardwright.square_sum",
            results=(squares,),
            shapes=((),),
            dtypes=(wide,),
            args=(
                tuple(map(Ref, gradients)),
                tuple(_share(state, axes, costing.sizes) for state in states),
            ),
            kind="reduction",
            phase="update",
            path="clip",
            time=costing.updates.square_sum(float(sum(nbytes)), wide),
        )
    ]
    if math.prod(costing.sizes[axis] for axis in axes) > 1:
        total = new(dtype_bytes(wide))
        out.append(_summed(squares, total, axes, wide, costing))
        squares = total
    clipped: list[int] = []
    for number, group in enumerate(_groups(states, shapes)):
        results = tuple(new(nbytes[i]) for i in group)
        clipped += results
        scaled = _scaled(
            f"update.clip.scale#{number + 1}",
            squares=squares,
            sources=tuple(gradients[i] for i in group),
            results=results,
            shapes=tuple(shapes[i] for i in group),
            dtypes=tuple(states[i].dtype for i in group),
            seconds=costing.updates.scaling(
                float(sum(nbytes[i] for i in group)), states[group[0]].dtype
            ),
            costing=costing,
        )
        out.append(scaled)
    return out, tuple(clipped)


def _summed(
    squares: int, total: int, axes: tuple[int, ...], dtype: str, costing: Costing
) -> Communicate:
    """The sum of the squares of all ranks that hold pieces."""
    nbytes = dtype_bytes(dtype)
    return Communicate(
        id="update.clip.all_reduce",
        kind="all_reduce",
        axes=axes,
        sources=(squares,),
        results=(total,),
        expanded=((),),
        shapes=((),),
        dtypes=(dtype,),
        phase="update",
        path="clip",
        nbytes=nbytes,
        time=costing.messages.communication("all_reduce", axes, float(nbytes)),
    )


def _scaled(
    name: str,
    *,
    squares: int,
    sources: tuple[int, ...],
    results: tuple[int, ...],
    shapes: tuple[tuple[int, ...], ...],
    dtypes: tuple[str, ...],
    seconds: float,
    costing: Costing,
) -> Compute:
    """The gradients `sources`, scaled down if the norm is over the limit."""
    assert costing.updates.clip_norm is not None
    limit = (costing.updates.clip_norm, *_epsilon(costing))
    return Compute(
        id=name,
        op="shardwright.clipped",
        results=results,
        args=(tuple(map(Ref, sources)), Ref(squares), *limit),
        shapes=shapes,
        dtypes=dtypes,
        kind="elementwise",
        phase="update",
        path="clip",
        time=seconds,
    )


def _epsilon(costing: Costing) -> tuple[float, ...]:
    return () if costing.updates.clip_epsilon == CLIP_EPSILON else (costing.updates.clip_epsilon,)


def _share(state: ParameterState, axes: tuple[int, ...], sizes: tuple[int, ...]) -> float:
    """1 over the number of ranks that hold the same shard, among those that are summed over."""
    return 1.0 / math.prod(sizes[axis] for axis in axes if not is_split(state.updated[axis]))


def _nbytes(state: ParameterState, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype_bytes(state.dtype)


def _groups(states: Sequence[ParameterState], shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """The gradients' indices in groups of about a bucket: while a group is scaled, it is held
    twice."""
    groups: list[list[int]] = [[]]
    held = 0
    for index, (state, shape) in enumerate(zip(states, shapes, strict=True)):
        if groups[-1] and held + _nbytes(state, shape) > BUCKET_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(index)
        held += _nbytes(state, shape)
    return groups
