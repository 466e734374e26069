"""Values that enter and leave a pipeline stage, and the sum of the shares of stages
(`planner.kernels.stages`)."""

from __future__ import annotations

import math
from dataclasses import replace

from planner.rules.pointwise import pointwise_signature
from planner.rules.signature import Call, OpCost, Signature, register


@register("shardwright.receive", "shardwright.send")
def _crossing(call: Call) -> Signature:
    """A value crosses whole or in pieces, not as partial sums; the op itself moves nothing."""
    found = replace(pointwise_signature(call), cost=lambda s: OpCost(flops=0.0, elements=0.0))
    return replace(found, kind="view") if call.op == "shardwright.send" else found


@register("shardwright.sum_of_stages")
def _sum_of_stages(call: Call) -> Signature:
    num = len(call.operands)
    return replace(
        pointwise_signature(call, (frozenset(range(num)),)),
        cost=lambda s: OpCost(
            flops=float((num - 1) * math.prod(s)), elements=float((num + 1) * math.prod(s))
        ),
    )
