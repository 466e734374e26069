"""Sums and maxima, softmax, normalisation, lookups."""

from __future__ import annotations

import math
from typing import Any

from planner.rules.signature import Call, Local, LocalCall, OpCost, Signature, register


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
        kind="reduction", sizes=shape, operands=(letters,), results=(kept,), reduced=(dims,), linear=(frozenset({0}),)
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
    "aten.cumsum.default",
    "aten.argmax.default",
)
def _extreme(call: Call) -> Signature:
    """The dims reduced (or scanned) cannot be split: a partial maximum is not a layout that redistribution offers."""
    (shape,), (result,) = call.operands, call.results
    rank = len(shape)
    if call.op == "aten.cumsum.default":
        dims, keep = _dims_of(call.args[1], rank), True
        return Signature(
            kind="reduction", sizes=shape, operands=(tuple((d,) for d in range(rank)),), results=(tuple((d,) for d in range(rank)),),
            fixed=dims, linear=(frozenset({0}),),
        )  # fmt: skip
    dims = _dims_of(call.args[1] if len(call.args) > 1 else None, rank)
    keep = len(result) == rank
    kept = tuple(() if d in dims else (d,) for d in range(rank) if keep or d not in dims)
    return Signature(kind="reduction", sizes=shape, operands=(tuple((d,) for d in range(rank)),), results=(kept,), fixed=dims)


@register("aten._softmax.default", "aten._log_softmax.default")
def _softmax(call: Call) -> Signature:
    (shape,) = call.operands
    letters = tuple((d,) for d in range(len(shape)))
    return Signature(
        kind="softmax", sizes=shape, operands=(letters,), results=(letters,), fixed=frozenset({call.args[1] % len(shape)})
    )


@register("aten._softmax_backward_data.default", "aten._log_softmax_backward_data.default")
def _softmax_backward(call: Call) -> Signature:
    shape = call.operands[0]
    letters = tuple((d,) for d in range(len(shape)))
    return Signature(
        kind="softmax", sizes=shape, operands=(letters, letters), results=(letters,),
        fixed=frozenset({call.args[2] % len(shape)}), linear=(frozenset({0}),),
    )  # fmt: skip


@register("aten.native_layer_norm.default")
def _layer_norm(call: Call) -> Signature:
    """Leading dims pass; normalised dims cannot be split."""
    x = call.operands[0]
    rank, lead = len(x), len(x) - len(call.args[1])
    whole, tail = tuple((d,) for d in range(rank)), tuple((d,) for d in range(lead, rank))
    stats = tuple((d,) if d < lead else () for d in range(rank))
    return Signature(
        kind="norm", sizes=x, operands=(whole, *((tail,) * (len(call.operands) - 1))), results=(whole, stats, stats),
        fixed=frozenset(range(lead, rank)), cost=lambda s: OpCost(flops=8.0 * math.prod(s), elements=2.0 * math.prod(s)),
    )  # fmt: skip


@register("aten.native_layer_norm_backward.default")
def _layer_norm_backward(call: Call) -> Signature:
    """grad, x, mean, rstd, weight, bias -> grad_x, and grad_weight and grad_bias, partial over the leading dims."""
    x = call.operands[1]
    rank, lead = len(x), len(x) - len(call.args[2])
    whole, tail = tuple((d,) for d in range(rank)), tuple((d,) for d in range(lead, rank))
    stats = tuple((d,) if d < lead else () for d in range(rank))
    leading = frozenset(range(lead))
    mask = call.args[7]
    results = (whole if mask[0] else ((),), tail if mask[1] else ((),), tail if mask[2] else ((),))
    return Signature(
        kind="norm", sizes=x, operands=(whole, whole, stats, stats, *((tail,) * (len(call.operands) - 4))), results=results,
        fixed=frozenset(range(lead, rank)), reduced=(frozenset(), leading, leading), linear=(frozenset({0}),),
        cost=lambda s: OpCost(flops=14.0 * math.prod(s), elements=3.0 * math.prod(s)),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- lookups


def _embedding_args(call: Call, local: Local) -> LocalCall:
    from planner.program import Offset

    if 0 not in local.split:
        return call.op, call.args[:2], ()
    offset = Offset(local.split[0], local.sizes[0])
    return "shardwright.embedding_shard", call.args[:2], (("offset", offset),)


@register("aten.embedding.default", localize=_embedding_args)
def _embedding(call: Call) -> Signature:
    """weight [v, d], ids -> ids x d. Split over the vocabulary, a shard looks up its own rows and gives zeros for others."""
    weight, ids = call.operands
    n = len(ids)
    sizes = (weight[0], weight[1], *ids)
    where = tuple((2 + d,) for d in range(n))
    return Signature(
        kind="embedding", sizes=sizes, operands=(((0,), (1,)), where), results=((*where, (1,)),), reduced=(frozenset({0}),),
        linear=(frozenset({0}),),
        cost=lambda s: OpCost(flops=0.0, elements=2.0 * s[1] * math.prod(s[2:])),
    )  # fmt: skip


def _embedding_backward_args(call: Call, local: Local) -> LocalCall:
    from planner.program import Offset

    grad, ids, _, padding, _scale = call.args
    if 0 not in local.split:
        return call.op, call.args, ()
    offset = Offset(local.split[0], local.sizes[0])
    return "shardwright.embedding_backward_shard", (grad, ids, local.sizes[0]), (("offset", offset), ("padding_idx", padding))


@register("aten.embedding_dense_backward.default", localize=_embedding_backward_args)
def _embedding_backward(call: Call) -> Signature:
    """grad [ids, d], ids -> grad_weight [v, d], partial over the ids."""
    grad, ids = call.operands
    (weight,) = call.results
    n = len(ids)
    sizes = (weight[0], weight[1], *ids)
    where = tuple((2 + d,) for d in range(n))
    return Signature(
        kind="embedding", sizes=sizes, operands=((*where, (1,)), where), results=(((0,), (1,)),),
        reduced=(frozenset(range(2, 2 + n)),), linear=(frozenset({0}),),
        cost=lambda s: OpCost(flops=0.0, elements=float(s[0] * s[1] + 2 * s[1] * math.prod(s[2:]))),
    )  # fmt: skip


@register("aten.gather.default")
def _gather(call: Call) -> Signature:
    """The dim gathered along cannot be split; others pass where input and index agree."""
    shape, index = call.operands
    rank, dim = len(shape), call.args[1] % len(shape)
    sizes = (*shape, *index)
    same = [d for d in range(rank) if d != dim and shape[d] == index[d]]
    where = tuple((d,) if d in same else (rank + d,) for d in range(rank))
    fixed = frozenset(set(range(2 * rank)) - set(same))
    return Signature(
        kind="embedding", sizes=sizes, operands=(tuple((d,) for d in range(rank)), where), results=(where,), fixed=fixed,
        linear=(frozenset({0}),), cost=lambda s: OpCost(flops=0.0, elements=3.0 * math.prod(s[x] for t in where for x in t)),
    )  # fmt: skip


def _scatter_signature(call: Call) -> Signature:
    shape, index = call.operands[:2]
    rank, dim = len(shape), call.args[1] % len(shape)
    sizes = (*shape, *index)
    same = [d for d in range(rank) if d != dim and shape[d] == index[d]]
    where = tuple((d,) if d in same else (rank + d,) for d in range(rank))
    fixed = frozenset(set(range(2 * rank)) - set(same))
    whole = tuple((d,) for d in range(rank))
    sources = (where,) * (len(call.operands) - 2)
    return Signature(
        kind="embedding", sizes=sizes, operands=(whole, where, *sources), results=(whole,), fixed=fixed,
    )  # fmt: skip


@register("aten.scatter.value", "aten.scatter.src", "aten.scatter_add.default")
def _scatter(call: Call) -> Signature:
    return _scatter_signature(call)
