"""Sums over the microbatches of a step (`planner.kernels.microbatch`)."""

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
