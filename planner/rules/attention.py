"""Attention, with and without a mask (`planner.kernels`)."""

from __future__ import annotations

import math
from typing import Any

from planner.rules.signature import Call, Letters, OpCost, Signature, register

#: The letters of attention; heads are (KV_HEADS, GROUP).
BATCH, KV_HEADS, QUERIES, DEPTH, KEYS, VALUE_DEPTH, GROUP = range(7)

_ATTENTION_NAMES = (
    (BATCH, "batch"),
    (KV_HEADS, "heads"),
    (QUERIES, "sequence"),
    (DEPTH, "head_dim"),
    (GROUP, "query group"),
)

_ATTENTION: dict[str, Letters] = {
    "q": ((BATCH,), (KV_HEADS, GROUP), (QUERIES,), (DEPTH,)),
    "k": ((BATCH,), (KV_HEADS,), (KEYS,), (DEPTH,)),
    "v": ((BATCH,), (KV_HEADS,), (KEYS,), (VALUE_DEPTH,)),
    "out": ((BATCH,), (KV_HEADS, GROUP), (QUERIES,), (VALUE_DEPTH,)),
    "lse": ((BATCH,), (KV_HEADS, GROUP), (QUERIES,)),
}


def _attention_sizes(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> tuple[int, ...]:
    return (q[0], k[1], q[2], q[3], k[2], v[3], q[1] // k[1])


def _attention_fixed(causal: bool) -> frozenset[int]:
    """The letters that cannot be split. Queries do not see each other, so they can be split, unless
    the mask is causal: the kernel counts them from 0."""
    return frozenset({QUERIES, DEPTH, KEYS, VALUE_DEPTH} if causal else {DEPTH, KEYS, VALUE_DEPTH})


def _bias_letters(bias: tuple[int, ...], s: tuple[int, ...]) -> tuple[Letters, frozenset[int]]:
    """The letters of a bias that broadcasts, and the letters over which its gradient is summed."""
    full = ((BATCH,), (KV_HEADS, GROUP), (QUERIES,), (KEYS,))
    letters: list[tuple[int, ...]] = []
    over: set[int] = set()
    for size, dim in zip(bias, full, strict=True):
        whole = math.prod(s[x] for x in dim)
        letters.append(dim if size == whole else ())
        over |= set() if size == whole else set(dim)
    return tuple(letters), frozenset(over)


def _attention_cost(products: float, causal: bool, passes: int, biased: bool = False) -> Any:
    def cost(s: tuple[int, ...]) -> OpCost:
        heads = s[BATCH] * s[KV_HEADS] * s[GROUP]
        flops = (
            products
            * heads
            * s[QUERIES]
            * s[KEYS]
            * (s[DEPTH] + s[VALUE_DEPTH])
            * (0.5 if causal else 1.0)
        )
        ours, theirs = s[GROUP] * s[QUERIES], s[KEYS]
        elements = passes * s[BATCH] * s[KV_HEADS] * (ours + theirs) * (s[DEPTH] + s[VALUE_DEPTH])
        # With a bias the scores are stored: there is no fused kernel.
        elements += passes * 4 * heads * s[QUERIES] * s[KEYS] if biased else 0
        return OpCost(
            flops=flops, elements=float(elements), gemm=(heads, s[QUERIES], s[KEYS], s[DEPTH])
        )

    return cost


@register("shardwright.attention")
def _attention(call: Call) -> Signature:
    """q, k, v -> out, lse. Batch, key heads and the query heads of each can be split, and queries
    if the mask is not causal; keys cannot (that takes ring attention)."""
    causal = bool(call.args[3])
    sizes, at = _attention_sizes(*call.operands), _ATTENTION
    return Signature(
        kind="attention",
        sizes=sizes,
        operands=(at["q"], at["k"], at["v"]),
        results=(at["out"], at["lse"]),
        fixed=_attention_fixed(causal),
        names=_ATTENTION_NAMES,
        cost=_attention_cost(2.0, causal, 1),
    )


@register("shardwright.attention_backward")
def _attention_backward(call: Call) -> Signature:
    """grad, q, k, v, out, lse -> gradients of q, k, v, the latter two partial over queries and
    over the query heads of a key head. Five products instead of forward's two, since the scores
    are computed again."""
    causal = bool(call.args[6])
    sizes, at = _attention_sizes(*call.operands[1:4]), _ATTENTION
    queries = frozenset({QUERIES, GROUP})
    return Signature(
        kind="attention",
        sizes=sizes,
        operands=tuple(at[name] for name in ("out", "q", "k", "v", "out", "lse")),
        results=(at["q"], at["k"], at["v"]),
        fixed=_attention_fixed(causal),
        names=_ATTENTION_NAMES,
        linear=(frozenset({0}),),
        reduced=(frozenset(), queries, queries),
        cost=_attention_cost(5.0, causal, 2),
    )


@register("shardwright.masked_attention")
def _masked_attention(call: Call) -> Signature:
    """q, k, v, bias -> out, lse."""
    causal = bool(call.args[4])
    sizes, at = _attention_sizes(*call.operands[:3]), _ATTENTION
    bias, _ = _bias_letters(call.operands[3], sizes)
    return Signature(
        kind="attention",
        sizes=sizes,
        operands=(at["q"], at["k"], at["v"], bias),
        results=(at["out"], at["lse"]),
        fixed=_attention_fixed(causal),
        names=_ATTENTION_NAMES,
        cost=_attention_cost(2.0, False, 1, biased=True),
    )


@register("shardwright.masked_attention_backward")
def _masked_attention_backward(call: Call) -> Signature:
    """grad, q, k, v, bias, out, lse -> gradients of q, k, v and the bias. That of the bias is
    partial over the letters that it broadcasts over."""
    causal, wanted = bool(call.args[7]), bool(call.args[9])
    sizes, at = _attention_sizes(*call.operands[1:4]), _ATTENTION
    bias, over = _bias_letters(call.operands[4], sizes)
    queries = frozenset({QUERIES, GROUP})
    return Signature(
        kind="attention",
        sizes=sizes,
        operands=(at["out"], at["q"], at["k"], at["v"], bias, at["out"], at["lse"]),
        results=(at["q"], at["k"], at["v"], bias if wanted else ((),)),
        fixed=_attention_fixed(causal),
        names=_ATTENTION_NAMES,
        linear=(frozenset({0}),),
        reduced=(frozenset(), queries, queries, over if wanted else frozenset()),
        cost=_attention_cost(5.0, False, 2, biased=True),
    )
