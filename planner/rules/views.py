"""Ops that rearrange a tensor or take part of it: reshape, permute, slices, splits and joins."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from planner.rules.signature import (
    Call,
    Letters,
    Local,
    LocalCall,
    OpCost,
    Signature,
    dim_of,
    register,
)

__all__ = ["common_letters"]


def common_letters(
    before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[tuple[int, ...], Letters, Letters] | None:
    """Letters that write both shapes as products, row-major: (4, 6) -> (2, 12) gives sizes (2, 2,
    6) and the letters of each shape.

    None if the boundaries do not nest, as in (2, 3) -> (3, 2): then no dim can be split.
    """
    if math.prod(before) != math.prod(after) or 0 in before:
        return None
    cuts = sorted(
        {math.prod(before[i:]) for i in range(len(before) + 1)}
        | {math.prod(after[i:]) for i in range(len(after) + 1)}
    )
    for small, large in pairwise(cuts):
        if large % small:
            return None
    sizes = tuple(large // small for small, large in pairwise(cuts))[::-1]
    return sizes, _dims(before, cuts[::-1]), _dims(after, cuts[::-1])


def _dims(shape: tuple[int, ...], cuts: list[int]) -> Letters:
    out, letter = [], 0
    for i, size in enumerate(shape):
        end = math.prod(shape[i + 1 :])
        letters: list[int] = []
        while size > 1 and letter < len(cuts) - 1 and cuts[letter + 1] >= end:
            letters.append(letter)
            letter += 1
        out.append(tuple(letters))
    return tuple(out)


def _no_cost(sizes: tuple[int, ...]) -> OpCost:
    return OpCost(flops=0.0, elements=0.0)


def _reshape_args(call: Call, local: Local) -> LocalCall:
    return call.op, (call.args[0], local.results[0]), ()


@register("shardwright.reshape", localize=_reshape_args)
def _reshape(call: Call) -> Signature:
    (before,), (after,) = call.operands, call.results
    found = common_letters(before, after)
    if found is None:
        return _opaque(before, after)
    sizes, operand, result = found
    return Signature(
        kind="view",
        sizes=sizes,
        operands=(operand,),
        results=(result,),
        linear=(frozenset({0}),),
        view=True,
    )


def _opaque(before: tuple[int, ...], after: tuple[int, ...]) -> Signature:
    """A reshape whose dims do not nest: nothing can be split, but partial sums pass."""
    sizes = (*before, *after)
    return Signature(
        kind="view",
        sizes=sizes,
        operands=(tuple((d,) for d in range(len(before))),),
        results=(tuple((len(before) + d,) for d in range(len(after))),),
        fixed=frozenset(range(len(sizes))),
        linear=(frozenset({0}),),
        cost=_no_cost,
    )


@register("aten.permute.default")
def _permute(call: Call) -> Signature:
    (shape,) = call.operands
    order = call.args[1]
    return Signature(
        kind="view",
        sizes=shape,
        operands=(tuple((d,) for d in range(len(shape))),),
        results=(tuple((d,) for d in order),),
        linear=(frozenset({0}),),
        view=True,
    )


def _run(length: int, args: tuple[Any, ...]) -> tuple[int, int, int]:
    """The start, length and step of a slice of a dim."""
    start, end, step = (tuple(args) + (None, None, 1)[len(args) :])[:3]
    found = range(length)[start:end:step]
    return found.start, len(found), found.step


def _slice_letters(
    shape: tuple[int, ...], dim: int, start: int, size: int, step: int
) -> tuple[tuple[int, ...], Letters, Letters, int]:
    """Sizes, letters of the whole and of the slice, and the letter that cannot be split. If the
    slice is one of equal pieces (such as a third of a fused QKV), the dim is (pieces, size), and
    size can be split; in any other slice the dim cannot be split."""
    rank = len(shape)
    own = tuple((d,) for d in range(rank))
    if step == 1 and size > 1 and shape[dim] % size == 0 and start % size == 0:
        sizes = (*(size if d == dim else s for d, s in enumerate(shape)), shape[dim] // size)
        return sizes, tuple((rank, d) if d == dim else (d,) for d in range(rank)), own, rank
    return (*shape, size), own, tuple((rank,) if d == dim else (d,) for d in range(rank)), -1


def _slice_args(call: Call, local: Local) -> LocalCall:
    """The bounds of one of equal pieces shrink with the piece."""
    (shape,) = call.operands
    dim = dim_of(call, 1, len(shape))
    return call.op, (call.args[0], dim, *_local_bounds(shape, dim, call.args[2:], local)), ()


def _local_bounds(
    shape: tuple[int, ...], dim: int, bounds: tuple[Any, ...], local: Local
) -> tuple[Any, ...]:
    start, size, step = _run(shape[dim], bounds)
    if _slice_letters(shape, dim, start, size, step)[3] < 0:
        return bounds
    piece = local.sizes[dim]
    return start // size * piece, (start // size + 1) * piece, 1


@register("aten.slice.Tensor", localize=_slice_args)
def _slice(call: Call) -> Signature:
    (shape,) = call.operands
    dim = dim_of(call, 1, len(shape))
    sizes, whole, piece, fixed = _slice_letters(shape, dim, *_run(shape[dim], call.args[2:]))
    return Signature(
        kind="view",
        sizes=sizes,
        operands=(whole,),
        results=(piece,),
        linear=(frozenset({0}),),
        cost=_no_cost,
        fixed=frozenset({fixed} if fixed >= 0 else {dim, len(shape)}),
    )


@register("aten.select.int")
def _select(call: Call) -> Signature:
    (shape,) = call.operands
    dim = dim_of(call, 1, len(shape))
    return Signature(
        kind="view",
        sizes=shape,
        operands=(tuple((d,) for d in range(len(shape))),),
        results=(tuple((d,) for d in range(len(shape)) if d != dim),),
        fixed=frozenset({dim}),
        linear=(frozenset({0}),),
        cost=_no_cost,
    )


def _equal_split_args(call: Call, local: Local) -> LocalCall:
    dim = dim_of(call, 2, len(call.operands[0]))
    return call.op, (call.args[0], local.results[0][dim], dim), ()


@register("aten.split.Tensor", "aten.unsafe_split.Tensor", localize=_equal_split_args)
def _split(call: Call) -> Signature:
    """Pieces of one size."""
    return _equal_pieces(call)


@register("aten.chunk.default", "aten.unsafe_chunk.default")
def _chunk(call: Call) -> Signature:
    """At most as many pieces as asked for."""
    return _equal_pieces(call)


def _equal_pieces(call: Call) -> Signature:
    """Equal pieces: the dim is (pieces, size), and `size` can be split, such as the heads inside a
    fused QKV."""
    (shape,) = call.operands
    rank, dim, pieces = len(shape), dim_of(call, 2, len(shape)), len(call.results)
    size = shape[dim] // pieces
    if any(result[dim] != size for result in call.results) or (
        size and "chunk" in call.op and pieces != call.args[1]
    ):
        return _pieces(call, dim)
    sizes = (*(size if d == dim else s for d, s in enumerate(shape)), pieces)
    result = tuple((d,) for d in range(rank))
    return Signature(
        kind="view",
        sizes=sizes,
        operands=(tuple((rank, d) if d == dim else (d,) for d in range(rank)),),
        results=(result,) * len(call.results),
        fixed=frozenset({rank}),
        linear=(frozenset({0}),),
        cost=_no_cost,
    )


@register("aten.split_with_sizes.default")
def _split_with_sizes(call: Call) -> Signature:
    dim = dim_of(call, 2, len(call.operands[0]))
    return _pieces(call, dim)


def _pieces(call: Call, dim: int) -> Signature:
    """Unequal pieces: the dim cannot be split."""
    (shape,) = call.operands
    rank = len(shape)
    sizes = (*shape, *(result[dim] for result in call.results))
    results = tuple(
        tuple((rank + i,) if d == dim else (d,) for d in range(rank))
        for i in range(len(call.results))
    )
    return Signature(
        kind="view",
        sizes=sizes,
        operands=(tuple((d,) for d in range(rank)),),
        results=results,
        fixed=frozenset({dim, *range(rank, len(sizes))}),
        linear=(frozenset({0}),),
        cost=_no_cost,
    )


@register("aten.cat.default")
def _cat(call: Call) -> Signature:
    """Equal operands: the dim is (pieces, size), and `size` can be split; unequal: the dim
    cannot be split."""
    (result,) = call.results
    rank, dim = len(result), dim_of(call, 1, len(result))
    together = (frozenset(range(len(call.operands))),)
    if len(set(call.operands)) == 1:
        sizes = (*call.operands[0], len(call.operands))
        return Signature(
            kind="copy",
            sizes=sizes,
            operands=(tuple((d,) for d in range(rank)),) * len(call.operands),
            results=(tuple((rank, d) if d == dim else (d,) for d in range(rank)),),
            fixed=frozenset({rank}),
            linear=together,
        )
    whole = [
        len(shape) == rank for shape in call.operands
    ]  # torch joins an empty tensor of one dim with any other
    sizes = (
        *result,
        *(shape[dim] if w else 0 for shape, w in zip(call.operands, whole, strict=True)),
    )
    operands = tuple(
        tuple((rank + i,) if d == dim else (d,) for d in range(rank)) if w else ((rank + i,),)
        for i, w in enumerate(whole)
    )
    return Signature(
        kind="copy",
        sizes=sizes,
        operands=operands,
        results=(tuple((d,) for d in range(rank)),),
        fixed=frozenset({dim, *range(rank, len(sizes))}),
        linear=together,
    )


def _filled_args(call: Call, local: Local) -> LocalCall:
    """The shape to fill becomes local."""
    dim = dim_of(call, 2, len(call.results[0]))
    return call.op, (call.args[0], local.results[0], dim, *call.args[3:]), call.kwargs


def _slice_backward_args(call: Call, local: Local) -> LocalCall:
    dim = dim_of(call, 2, len(call.results[0]))
    return (
        call.op,
        (
            call.args[0],
            local.results[0],
            dim,
            *_local_bounds(call.results[0], dim, call.args[3:], local),
        ),
        (),
    )


@register("aten.slice_backward.default", localize=_slice_backward_args)
def _slice_backward(call: Call) -> Signature:
    (shape,) = call.results
    dim = dim_of(call, 2, len(shape))
    sizes, whole, piece, fixed = _slice_letters(shape, dim, *_run(shape[dim], call.args[3:]))
    return Signature(
        kind="copy",
        sizes=sizes,
        operands=(piece,),
        results=(whole,),
        linear=(frozenset({0}),),
        fixed=frozenset({fixed} if fixed >= 0 else {dim, len(shape)}),
    )


@register("aten.select_backward.default", localize=_filled_args)
def _select_backward(call: Call) -> Signature:
    (after,) = call.results
    dim, rank = dim_of(call, 2, len(after)), len(after)
    return Signature(
        kind="copy",
        sizes=after,
        operands=(tuple((d,) for d in range(rank) if d != dim),),
        results=(tuple((d,) for d in range(rank)),),
        fixed=frozenset({dim}),
        linear=(frozenset({0}),),
    )


@register("aten.unbind.int")
def _unbind(call: Call) -> Signature:
    (shape,) = call.operands
    dim = dim_of(call, 1, len(shape))
    rest = tuple((d,) for d in range(len(shape)) if d != dim)
    return Signature(
        kind="view",
        sizes=shape,
        operands=(tuple((d,) for d in range(len(shape))),),
        results=(rest,) * len(call.results),
        fixed=frozenset({dim}),
        linear=(frozenset({0}),),
        cost=_no_cost,
    )


def _within(call: Call, dims: Iterable[int], linear: bool = True) -> Signature:
    """Every dim keeps its size; `dims` cannot be split, the others can."""
    (shape,) = call.operands
    letters = tuple((d,) for d in range(len(shape)))
    return Signature(
        kind="copy",
        sizes=shape,
        operands=(letters,),
        results=(letters,),
        fixed=frozenset(d % len(shape) for d in dims if shape),
        linear=(frozenset({0}),) if linear else (),
    )


@register("aten.flip.default")
def _flip(call: Call) -> Signature:
    return _within(call, call.args[1])


@register("aten.roll.default")
def _roll(call: Call) -> Signature:
    dims = call.args[2] if len(call.args) > 2 else ()
    return _within(call, dims or range(len(call.operands[0])))


@register("aten.tril.default", "aten.triu.default")
def _triangle(call: Call) -> Signature:
    return _within(call, (-1, -2))


@register("aten.constant_pad_nd.default")
def _pad(call: Call) -> Signature:
    """A padded dim has one letter in x and another in the result; neither can be split."""
    (before,), (after,) = call.operands, call.results
    rank, pad = len(before), call.args[1]
    padded = [d for d in range(rank) if any(pad[2 * (rank - 1 - d) : 2 * (rank - d)])]
    fill = call.args[2] if len(call.args) > 2 else 0
    return Signature(
        kind="copy",
        sizes=(*before, *after),
        operands=(tuple((d,) for d in range(rank)),),
        results=(tuple((rank + d,) if d in padded else (d,) for d in range(rank)),),
        fixed=frozenset(padded) | frozenset(range(rank, 2 * rank)),
        linear=(frozenset({0}),) if fill == 0 else (),
    )


def _repeat_args(call: Call, local: Local) -> LocalCall:
    return call.op, (call.args[0], local.sizes[len(call.operands[0]) :]), ()


@register("aten.repeat.default", localize=_repeat_args)
def _repeat(call: Call) -> Signature:
    """Each dim is (times, size), and both can be split."""
    (shape,), times = call.operands, call.args[1]
    rank, lead = len(shape), len(times) - len(shape)
    results = tuple((rank + d, d - lead) if d >= lead else (rank + d,) for d in range(len(times)))
    return Signature(
        kind="copy",
        sizes=(*shape, *times),
        operands=(tuple((d,) for d in range(rank)),),
        results=(results,),
        linear=(frozenset({0}),),
    )


@register("aten.slice_scatter.default", "aten.select_scatter.default")
def _put_slice(call: Call) -> Signature:
    """x with a slice of a dim replaced: the dim cannot be split, the others can. Partial sums pass
    if both operands are partial."""
    whole, piece = call.operands
    rank, select = len(whole), "select" in call.op
    dim = dim_of(call, 2, rank)
    at_piece = tuple(
        (rank,) if d == dim else (d,) for d in range(rank) if not (select and d == dim)
    )
    letters = tuple((d,) for d in range(rank))
    return Signature(
        kind="copy",
        sizes=(*whole, 1 if select else piece[dim]),
        operands=(letters, at_piece),
        results=(letters,),
        fixed=frozenset({dim, rank}),
        linear=(frozenset({0, 1}),),
    )
