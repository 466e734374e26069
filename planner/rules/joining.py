"""Ops that put elements in other places: joins, pads, repeats, flips, triangles."""

from __future__ import annotations

from collections.abc import Iterable

from planner.rules.signature import (
    Call,
    Local,
    LocalCall,
    Signature,
    dim_of,
    register,
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
    # torch joins an empty tensor of one dim with any other.
    whole = [len(shape) == rank for shape in call.operands]
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
