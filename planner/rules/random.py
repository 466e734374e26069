"""Dropout and random numbers that do not depend on how the tensor is split
(`planner.kernels.dropout`, `noise`)."""

from __future__ import annotations

import math
from typing import Any

from planner.rules.signature import Call, Letters, Local, LocalCall, OpCost, Signature, register

#: Drawing a mask and applying it, in passes over the tensor: 5.0 ns an element where an addition,
#: which has three operands, takes 1.9 (torch 2.13, one thread of an EPYC, float32 4096 x 4096,
#: 2026-11-24); torch's own dropout took 10.
_PASSES = 8.0
#: Integer ops of a draw, and of selecting by it.
_DRAW_FLOPS = 12.0


def _with_places(call: Call, local: Local) -> LocalCall:
    """The call with the place of the shard in the whole tensor as an argument."""
    return call.op, call.args, _places(call, local)


def _places(call: Call, local: Local) -> tuple[tuple[str, Any], ...]:
    return (*call.kwargs, ("places", local.leaves)) if local.split else call.kwargs


def _key(shape: tuple[int, ...]) -> Letters:
    """The key has no letters: a number, or two in a step of microbatches."""
    return tuple(() for _ in shape)


@register("shardwright.dropout", localize=_with_places)
def _dropout(call: Call) -> Signature:
    """x, key -> result, mask: every dim can be split. The mask of a partial sum would be partial
    too, so x is reduced first."""
    shape = call.operands[0]
    x = tuple((d,) for d in range(len(shape)))
    return Signature(
        kind="elementwise",
        sizes=shape,
        operands=(x, _key(call.operands[1])),
        results=(x, x),
        placed=True,
        cost=lambda s: OpCost(flops=0.0, elements=_PASSES * math.prod(s)),
    )


@register("shardwright.dropout_backward")
def _dropout_backward(call: Call) -> Signature:
    """grad, mask -> gradient of x."""
    shape = call.operands[0]
    x = tuple((d,) for d in range(len(shape)))
    return Signature(
        kind="elementwise", sizes=shape, operands=(x, x), results=(x,), linear=(frozenset({0}),)
    )


def _local_with_places(call: Call, local: Local) -> LocalCall:
    args = (call.args[0], tuple(local.sizes), *call.args[2:])
    return call.op, args, _places(call, local)


@register("shardwright.uniform", localize=_local_with_places)
def _uniform(call: Call) -> Signature:
    """key -> numbers: every dim can be split."""
    (shape,) = call.results
    return Signature(
        kind="elementwise",
        sizes=shape,
        operands=(_key(call.operands[0]),),
        results=(tuple((d,) for d in range(len(shape))),),
        placed=True,
        cost=lambda s: OpCost(flops=0.0, elements=_PASSES * math.prod(s)),
    )


@register("shardwright.drop_hashes", localize=_local_with_places)
def _drop_hashes(call: Call) -> Signature:
    """key -> hashes of the rows and of the columns of a tensor: every dim of it can be split."""
    shape = call.args[1]
    x = tuple((d,) for d in range(len(shape)))
    return Signature(
        kind="elementwise",
        sizes=shape,
        operands=(_key(call.operands[0]),),
        results=(x[:-1], x[-1:]),
        placed=True,
        cost=lambda s: OpCost(flops=0.0, elements=float(math.prod(s[:-1]) + s[-1])),
    )


@register("shardwright.drop_by")
def _drop_by(call: Call) -> Signature:
    """x, hashes of its rows and columns -> result, mask: as `dropout`. The flops are those of one
    draw an element."""
    shape = call.operands[0]
    x = tuple((d,) for d in range(len(shape)))
    return Signature(
        kind="elementwise",
        sizes=shape,
        operands=(x, x[:-1], x[-1:]),
        results=(x, x),
        cost=lambda s: OpCost(flops=_DRAW_FLOPS * math.prod(s), elements=_PASSES * math.prod(s)),
    )
