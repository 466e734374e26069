"""Makes reduced gradients ready for the optimizer: in its format, clipped by their global norm.

Gradients, as reduced for the update -> instructions, and the gradients that the update reads. The
norm is that of all ranks: squares of this rank's shards, then one small all-reduce. A shard that
several ranks hold counts once: each adds its share of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from cost_models.memory import dtype_bytes
from planner.graph.layout import is_split
from planner.kernels.clip import CLIP_EPSILON
from planner.program.program import Communicate, Compute, Instruction, ParameterState, Ref
from planner.strategy.costing import Costing
from planner.strategy.message_costs import BUCKET_BYTES

__all__ = ["ready_gradients"]


def ready_gradients(
    gradients: Sequence[int],
    states: Sequence[ParameterState],
    shapes: Sequence[tuple[int, ...]],
    costing: Costing,
    new: Callable[[int], int],
) -> tuple[list[Instruction], tuple[int, ...]]:
    """The instructions, and the ids of the gradients that the update reads. `shapes` are those of
    the shards; `new(nbytes)` makes a value id."""
    updates = costing.updates
    if not any(updates.changes_gradients(state.dtype) for state in states):
        return [], tuple(gradients)
    before = [
        _nbytes(updates.formats.reduced(s.dtype), x) for s, x in zip(states, shapes, strict=True)
    ]
    after = [
        _nbytes(updates.formats.updated(s.dtype), x) for s, x in zip(states, shapes, strict=True)
    ]
    out: list[Instruction] = []
    squares: int | None = None
    if updates.sums_squares:
        out, squares = _squares(gradients, states, sum(before), costing, new)
    ready: list[int] = []
    for number, group in enumerate(_groups(after)):
        results = tuple(new(after[i]) for i in group)
        ready += results
        dtypes = tuple(updates.formats.updated(states[i].dtype) for i in group)
        op, args = _call(tuple(Ref(gradients[i]) for i in group), dtypes, squares, costing)
        out.append(
            Compute(
                id=f"update.{'ready' if squares is None else 'clip.scale'}#{number + 1}",
                op=op,
                args=args,
                results=results,
                shapes=tuple(shapes[i] for i in group),
                dtypes=dtypes,
                kind="elementwise",
                phase="update",
                path="ready" if squares is None else "clip",
                time=updates.scaling(
                    float(sum(before[i] for i in group)),
                    dtypes[0],
                    float(sum(after[i] for i in group)),
                ),
            )
        )
    return out, tuple(ready)


def _squares(
    gradients: Sequence[int],
    states: Sequence[ParameterState],
    nbytes: int,
    costing: Costing,
    new: Callable[[int], int],
) -> tuple[list[Instruction], int]:
    """The instructions that sum the squares of all gradients, of `nbytes` on this rank, over all
    ranks that hold pieces; and the id of the sum."""
    split = {
        axis for state in states for axis, place in enumerate(state.updated) if is_split(place)
    }
    axes = tuple(sorted(split))
    wide = "float64" if any(state.dtype == "float64" for state in states) else "float32"
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
            time=costing.updates.square_sum(float(nbytes), wide),
        )
    ]
    if math.prod(costing.sizes[axis] for axis in axes) == 1:
        return out, squares
    total = new(dtype_bytes(wide))
    return [*out, _summed(squares, total, axes, wide, costing)], total


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


def _call(
    gradients: tuple[Ref, ...], dtypes: tuple[str, ...], squares: int | None, costing: Costing
) -> tuple[str, tuple[Any, ...]]:
    """The op, and its arguments, that makes gradients ready: only clipped, or also cast."""
    updates = costing.updates
    epsilon = () if updates.clip_epsilon == CLIP_EPSILON else (updates.clip_epsilon,)
    sums = None if squares is None else Ref(squares)
    if not updates.formats.reduce:
        return "shardwright.clipped", (gradients, sums, updates.clip_norm, *epsilon)
    clip = () if sums is None else (None, sums, updates.clip_norm, *epsilon)
    return "shardwright.ready", (gradients, dtypes[0], *clip)


def _share(state: ParameterState, axes: tuple[int, ...], sizes: tuple[int, ...]) -> float:
    """1 over the number of ranks that hold the same shard, among those that are summed over."""
    return 1.0 / math.prod(sizes[axis] for axis in axes if not is_split(state.updated[axis]))


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype_bytes(dtype)


def _groups(nbytes: Sequence[int]) -> list[list[int]]:
    """The gradients' indices in groups of about a bucket: while a group is made ready, it is held
    twice."""
    groups: list[list[int]] = [[]]
    held = 0
    for index, size in enumerate(nbytes):
        if groups[-1] and held + size > BUCKET_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(index)
        held += size
    return groups
