"""Makes reduced gradients ready for the optimizer: in its format, without the loss's scale, clipped
by their global norm.

Gradients, as reduced for the update -> instructions, and the gradients that the update reads. The
norm is that of all ranks: squares of this rank's shards, then one small all-reduce. A shard that
several ranks hold counts once: each adds its share of it. If the loss is scaled, the same sum of
squares shows whether any gradient has overflowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from cost_models.memory import dtype_bytes
from planner.graph.layout import is_split
from planner.kernels.clip import CLIP_EPSILON
from planner.program.program import Communicate, Compute, Instruction, ParameterState, Ref
from planner.strategy.costing import Costing
from planner.strategy.message_costs import BUCKET_BYTES

__all__ = ["Ready", "ready_gradients"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The instructions that make gradients ready, the ids of the gradients that the update reads
    and, if it was needed, that of the sum of the squares of all reduced gradients; if it comes in
    from other stages, `of_stage` is this one's, of `dtype`."""

    instructions: tuple[Instruction, ...]
    gradients: tuple[int, ...]
    squares: int | None = None
    of_stage: int | None = None
    dtype: str = ""


def ready_gradients(
    gradients: Sequence[int],
    states: Sequence[ParameterState],
    shapes: Sequence[tuple[int, ...]],
    costing: Costing,
    new: Callable[[int], int],
    scale: int | None = None,
    copies: Collection[str] = (),
    *,
    of_stages: bool = False,
) -> Ready:
    """The gradients made ready. `shapes` are those of the shards; `new(nbytes)` makes a value id;
    `scale` is the id of the loss's scale, if it has one. With `of_stages`, the sum of squares is
    that of all pipeline stages, of which an earlier one counts the parameters `copies`."""
    updates = costing.updates
    if not any(updates.changes_gradients(state.dtype) for state in states):
        return Ready(instructions=(), gradients=tuple(gradients))
    before = [
        _nbytes(updates.formats.reduced(s.dtype), x) for s, x in zip(states, shapes, strict=True)
    ]
    after = [
        _nbytes(updates.formats.updated(s.dtype), x) for s, x in zip(states, shapes, strict=True)
    ]
    out: list[Instruction] = []
    squares: int | None = None
    name = "ready" if updates.clip_norm is None else "clip"
    if updates.sums_squares:
        own = [None if s.name in copies else s for s in states]
        out, squares = _squares(name, gradients, states, own, sum(before), costing, new)
    of_stage, wide = squares, _wide(states)
    if of_stages and squares is not None:
        squares = new(dtype_bytes(wide))
    ready: list[int] = []
    given = _Given(squares, scale)
    for number, group in enumerate(_groups(after)):
        results = tuple(new(after[i]) for i in group)
        ready += results
        dtypes = tuple(updates.formats.updated(states[i].dtype) for i in group)
        op, args = _call(tuple(Ref(gradients[i]) for i in group), dtypes, given, costing)
        out.append(
            Compute(
                id=f"update.{name}.scale#{number + 1}",
                op=op,
                args=args,
                results=results,
                shapes=tuple(shapes[i] for i in group),
                dtypes=dtypes,
                kind="elementwise",
                phase="update",
                path=name,
                time=updates.scaling(
                    float(sum(before[i] for i in group)),
                    dtypes[0],
                    float(sum(after[i] for i in group)),
                ),
            )
        )
    return Ready(
        instructions=tuple(out),
        gradients=tuple(ready),
        squares=squares,
        of_stage=of_stage if of_stages else None,
        dtype=wide,
    )


def _wide(states: Sequence[ParameterState]) -> str:
    """The format in which squares are added up."""
    return "float64" if any(state.dtype == "float64" for state in states) else "float32"


def _squares(
    name: str,
    gradients: Sequence[int],
    states: Sequence[ParameterState],
    own: Sequence[ParameterState | None],
    nbytes: int,
    costing: Costing,
    new: Callable[[int], int],
) -> tuple[list[Instruction], int]:
    """The instructions that sum the squares of all gradients, of `nbytes` on this rank, over all
    ranks that hold pieces; and the id of the sum. Those that are not its `own` count for nothing."""
    split = {
        axis for state in states for axis, place in enumerate(state.updated) if is_split(place)
    }
    axes = tuple(sorted(split))
    wide = _wide(states)
    squares = new(dtype_bytes(wide))
    out: list[Instruction] = [
        Compute(
            id=f"update.{name}.square_sum",
            op="shardwright.square_sum",
            results=(squares,),
            shapes=((),),
            dtypes=(wide,),
            args=(
                tuple(map(Ref, gradients)),
                tuple(0.0 if s is None else _share(s, axes, costing.sizes) for s in own),
            ),
            kind="reduction",
            phase="update",
            path=name,
            time=costing.updates.square_sum(float(nbytes), wide),
        )
    ]
    if math.prod(costing.sizes[axis] for axis in axes) == 1:
        return out, squares
    total = new(dtype_bytes(wide))
    return [*out, _summed(name, squares, total, axes, wide, costing)], total


def _summed(
    name: str, squares: int, total: int, axes: tuple[int, ...], dtype: str, costing: Costing
) -> Communicate:
    """The sum of the squares of all ranks that hold pieces."""
    nbytes = dtype_bytes(dtype)
    return Communicate(
        id=f"update.{name}.all_reduce",
        kind="all_reduce",
        axes=axes,
        sources=(squares,),
        results=(total,),
        expanded=((),),
        shapes=((),),
        dtypes=(dtype,),
        phase="update",
        path=name,
        nbytes=nbytes,
        time=costing.messages.communication("all_reduce", axes, float(nbytes)),
    )


def _call(
    gradients: tuple[Ref, ...], dtypes: tuple[str, ...], given: _Given, costing: Costing
) -> tuple[str, tuple[Any, ...]]:
    """The op, and its arguments, that makes gradients ready: only clipped, or also cast and
    unscaled."""
    updates, clip = costing.updates, ()
    epsilon = () if updates.clip_epsilon == CLIP_EPSILON else (updates.clip_epsilon,)
    if updates.clip_norm is not None:
        assert given.squares is not None
        clip = (Ref(given.squares), updates.clip_norm, *epsilon)
        if not updates.formats.reduce and given.scale is None:
            return "shardwright.clipped", (gradients, *clip)
    scale = None if given.scale is None else Ref(given.scale)
    return "shardwright.ready", (gradients, dtypes[0], scale, *clip)


@dataclass(frozen=True, slots=True)
class _Given:
    """The values that change gradients: the ids of the sum of squares and of the loss's scale."""

    squares: int | None
    scale: int | None


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
