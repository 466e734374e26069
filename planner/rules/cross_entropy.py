"""The classification loss (`planner.kernels`)."""

from __future__ import annotations

import math

from planner.graph.graph import Group
from planner.rules.signature import Call, Local, LocalCall, OpCost, Signature, register


def _class_group(call: Call, local: Local) -> LocalCall:
    if 1 not in local.split:
        return call.op, call.args, ()
    offset = ("offset", local.offsets[1])
    if call.op.endswith("backward"):
        return call.op, call.args, (offset,)
    return (
        call.op,
        call.args,
        (("group", Group(local.split[1])), offset, ("classes", call.operands[0][1])),
    )


@register("shardwright.cross_entropy", localize=_class_group)
def _cross_entropy(call: Call) -> Signature:
    """logits [n, c], target [n] -> sum of losses, log-sum-exp [n]. If classes are split
    (vocabulary-parallel loss), the maximum, the sum and the target's logit are reduced inside."""
    n, c = call.operands[0]
    return Signature(
        kind="softmax",
        sizes=(n, c),
        operands=(((0,), (1,)), ((0,),)),
        results=((), ((0,),)),
        reduced=(frozenset({0}), frozenset()),
        inner=frozenset({1}),
        contiguous=frozenset({1}),
        names=((1, "classes"),),
        cost=lambda s: OpCost(flops=5.0 * math.prod(s), elements=2.0 * math.prod(s)),
        inner_traffic=lambda s, ranks: (("all_reduce", float(s[0]), 3),),
    )


@register("shardwright.count_targets")
def _count_targets(call: Call) -> Signature:
    """target [n] -> the number of targets that are not ignored, partial over n."""
    return Signature(
        kind="reduction",
        sizes=call.operands[0],
        operands=(((0,),),),
        results=((),),
        reduced=(frozenset({0}),),
    )


@register("shardwright.cross_entropy_backward", localize=_class_group)
def _cross_entropy_backward(call: Call) -> Signature:
    """grad of the sum, logits, target, lse -> grad of the logits; every dim can be split."""
    n, c = call.operands[1]
    return Signature(
        kind="softmax",
        sizes=(n, c),
        operands=((), ((0,), (1,)), ((0,),), ((0,),)),
        results=(((0,), (1,)),),
        names=((1, "classes"),),
        linear=(frozenset({0}),),
        contiguous=frozenset({1}),
        cost=lambda s: OpCost(flops=4.0 * math.prod(s), elements=2.0 * math.prod(s)),
    )
