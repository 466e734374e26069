"""Parts of a tensor and their way back: slices, rows, splits, chunks."""

from __future__ import annotations

from typing import Any

from planner.rules.signature import (
    Call,
    Letters,
    Local,
    LocalCall,
    Signature,
    dim_of,
    no_cost,
    register,
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
        cost=no_cost,
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
        cost=no_cost,
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
        cost=no_cost,
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
        cost=no_cost,
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
        cost=no_cost,
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
