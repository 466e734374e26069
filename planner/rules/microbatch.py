"""Sums over the microbatches of a step, and one microbatch's part of a whole tensor
(`planner.kernels.microbatch`)."""

from __future__ import annotations

import math
from dataclasses import replace

from planner.rules.pointwise import pointwise_signature
from planner.rules.signature import Call, OpCost, Signature, register


@register("shardwright.accumulate")
def _accumulate(call: Call) -> Signature:
    """The sum so far is read and written, and the term is read. The sum of partial sums is
    partial."""
    return replace(
        pointwise_signature(call, (frozenset({0}),)),
        cost=lambda s: OpCost(flops=math.prod(s), elements=3.0 * math.prod(s)),
    )


@register("shardwright.piece")
def _piece(call: Call) -> Signature:
    """x, key -> part of x: the runs that it is cut from cannot be split."""
    shape, key = call.operands
    dim, whole, here = call.args[2:]
    rank = len(shape)
    runs, before, after = rank, rank + 1, rank + 2
    sizes = (*shape, shape[dim] // whole, whole, here)

    def letters(of_run: int) -> tuple[tuple[int, ...], ...]:
        return tuple((runs, of_run) if d == dim else (d,) for d in range(rank))

    return Signature(
        kind="elementwise",
        sizes=sizes,
        operands=(letters(before), tuple(() for _ in key)),
        results=(letters(after),),
        fixed=frozenset({before, after}),
        linear=(frozenset({0}),),
        cost=lambda s: OpCost(flops=0.0, elements=2.0 * math.prod(s) / (s[dim] * s[before])),
    )
