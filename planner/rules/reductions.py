"""Sums, maxima, scans and softmax: ops that run over whole dims."""

from __future__ import annotations

from typing import Any

from planner.rules.signature import (
    Call,
    Signature,
    dim_of,
    register,
    unsplit,
)


def _dims_of(argument: Any, rank: int) -> frozenset[int]:
    if argument is None or argument == ():
        return frozenset(range(rank))
    dims = argument if isinstance(argument, tuple) else (argument,)
    return frozenset(d % rank for d in dims) if rank else frozenset()


def _reduction(call: Call, dims: frozenset[int], keep: bool) -> Signature:
    (shape,) = call.operands
    letters = tuple((d,) for d in range(len(shape)))
    kept = tuple(() if d in dims else (d,) for d in range(len(shape)) if keep or d not in dims)
    return Signature(
        kind="reduction",
        sizes=shape,
        operands=(letters,),
        results=(kept,),
        reduced=(dims,),
        linear=(frozenset({0}),),
    )


@register("aten.sum.default")
def _sum_all(call: Call) -> Signature:
    return _reduction(call, frozenset(range(len(call.operands[0]))), False)


@register("aten.sum.dim_IntList")
def _sum(call: Call) -> Signature:
    keep = bool(call.args[2]) if len(call.args) > 2 else False
    return _reduction(call, _dims_of(call.args[1], len(call.operands[0])), keep)


@register(
    "aten.amax.default",
    "aten.amin.default",
    "aten.max.default",
    "aten.min.default",
    "aten.max.dim",
    "aten.min.dim",
    "aten.argmax.default",
    "aten.argmin.default",
    "aten.prod.default",
    "aten.prod.dim_int",
    "aten.any.default",
    "aten.any.dim",
    "aten.all.default",
    "aten.all.dim",
)
def _extreme(call: Call) -> Signature:
    """Maxima and the like. Reduced dims cannot be split: there is no layout for a partial
    maximum."""
    (shape,) = call.operands
    dims = _dims_of(call.args[1] if len(call.args) > 1 else None, len(shape))
    keep = bool(call.args[2]) if len(call.args) > 2 else False
    kept = tuple(() if d in dims else (d,) for d in range(len(shape)) if keep or d not in dims)
    letters = tuple((d,) for d in range(len(shape)))
    return Signature(
        kind="reduction",
        sizes=shape,
        operands=(letters,),
        results=(kept,) * len(call.results),
        fixed=dims,
    )


@register("aten.cumsum.default", "aten.cumprod.default", "aten.sort.default")
def _scan(call: Call) -> Signature:
    """The dim scanned or sorted cannot be split."""
    (shape,) = call.operands
    letters = tuple((d,) for d in range(len(shape)))
    dim = call.args[1] if len(call.args) > 1 else -1
    return Signature(
        kind="reduction",
        sizes=shape,
        operands=(letters,),
        results=(letters,) * len(call.results),
        fixed=_dims_of(dim, len(shape)),
        linear=(frozenset({0}),) if "cumsum" in call.op else (),
    )


@register("aten.topk.default")
def _topk(call: Call) -> Signature:
    """The dim searched has one letter in x and another in the results; neither can be split."""
    (shape,) = call.operands
    rank = len(shape)
    if not rank:
        return unsplit(call, "reduction")
    dim = dim_of(call, 2, rank, -1)
    result = tuple((rank,) if d == dim else (d,) for d in range(rank))
    return Signature(
        kind="reduction",
        sizes=(*shape, call.args[1]),
        operands=(tuple((d,) for d in range(rank)),),
        results=(result, result),
        fixed=frozenset({dim, rank}),
    )


@register("aten._softmax.default", "aten._log_softmax.default")
def _softmax(call: Call) -> Signature:
    (shape,) = call.operands
    letters = tuple((d,) for d in range(len(shape)))
    return Signature(
        kind="softmax",
        sizes=shape,
        operands=(letters,),
        results=(letters,),
        fixed=_dims_of(call.args[1], len(shape)),
    )


@register("aten._softmax_backward_data.default", "aten._log_softmax_backward_data.default")
def _softmax_backward(call: Call) -> Signature:
    shape = call.operands[0]
    letters = tuple((d,) for d in range(len(shape)))
    return Signature(
        kind="softmax",
        sizes=shape,
        operands=(letters, letters),
        results=(letters,),
        fixed=_dims_of(call.args[2], len(shape)),
        linear=(frozenset({0}),),
    )
