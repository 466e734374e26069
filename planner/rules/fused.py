"""Our own fused ops: recurrent layers, attention, the classification loss (`planner.kernels`)."""

from __future__ import annotations

import math
from typing import Any

from planner.graph.graph import Group, Ref
from planner.rules.signature import Call, Letters, Local, LocalCall, OpCost, Signature, register

T, B, X_IN, GATES, H, H_IN, FIVE = range(7)  # the letters of an LSTM layer


def _unit_group(call: Call, local: Local) -> LocalCall:
    """If hidden units are split, the kernel gets the process group over which it gathers h at
    every step, and the number of units of each of its ranks if these differ."""
    if H not in local.split:
        return call.op, call.args, ()
    group, units = ("group", Group(local.split[H])), local.pieces[H]
    return call.op, call.args, (group,) if len(set(units)) == 1 else (group, ("units", units))


def _present(slots: tuple[str, ...], call: Call) -> list[str]:
    """The names, out of `slots`, of the tensors that a call has."""
    return [
        slot for slot, argument in zip(slots, call.args, strict=False) if isinstance(argument, Ref)
    ]


def _lstm_letters(name: str) -> Letters:
    tables: dict[str, Letters] = {
        "x": ((T,), (B,), (X_IN,)),
        "state": ((B,), (H,)),
        "w_ih": ((GATES, H), (X_IN,)),
        "w_hh": ((GATES, H), (H_IN,)),
        "bias": ((GATES, H),),
        "mask": ((T,), (B,)),
        "y": ((T,), (B,), (H,)),
        "reserve": ((T,), (B,), (FIVE, H)),
    }
    return tables[name]


def _lstm_sizes(x: tuple[int, ...], w_hh: tuple[int, ...]) -> tuple[int, ...]:
    hidden = w_hh[1]
    return (x[0], x[1], x[2], 4, hidden, hidden, 5)


def _lstm_cost(passes: int) -> Any:
    def cost(s: tuple[int, ...]) -> OpCost:
        flops = 2.0 * s[T] * s[B] * 4 * s[H] * (s[X_IN] + s[H_IN]) * passes
        weights = 4 * s[H] * (s[X_IN] + s[H_IN]) * s[T] * passes
        elements = float(weights + s[T] * s[B] * (s[X_IN] + 14 * s[H]) * passes)
        return OpCost(
            flops=flops, elements=elements, gemm=(1, s[B], 4 * s[H], s[H_IN]), steps=s[T] * passes
        )

    return cost


_LSTM_NAMES = ((T, "time"), (B, "batch"), (GATES, "gate"), (H, "hidden units"))


@register("shardwright.lstm", "shardwright.masked_lstm", localize=_unit_group)
def _lstm(call: Call) -> Signature:
    """x, h0, c0, w_ih, w_hh, (b_ih, b_hh), (mask) -> y, h, c, reserve. The batch can be split;
    so can the hidden units of every gate, with an all-gather of h at every time step. Time
    cannot."""
    names = _present(("x", "state", "state", "w_ih", "w_hh", "bias", "bias", "mask"), call)
    return Signature(
        kind="lstm",
        sizes=_lstm_sizes(call.operands[0], call.operands[4]),
        operands=tuple(map(_lstm_letters, names)),
        results=tuple(map(_lstm_letters, ("y", "state", "state", "reserve"))),
        fixed=frozenset({T, X_IN, GATES, H_IN, FIVE}),
        reduced=(frozenset(),) * 4,
        inner=frozenset({H}),
        contiguous=frozenset({H}),
        opaque=frozenset({3}),
        names=_LSTM_NAMES,
        cost=_lstm_cost(1),
        lstm=None if "masked" in call.op else lambda s: (s[T], s[B], s[X_IN], s[H]),
        inner_traffic=lambda s, ranks: (("all_gather", float(s[B] * s[H] * ranks), s[T]),),
    )


@register("shardwright.lstm_backward", "shardwright.masked_lstm_backward", localize=_unit_group)
def _lstm_backward(call: Call) -> Signature:
    """Gradients of y (h, c), then the saved tensors -> gradients of x, h0, c0, w_ih, w_hh, bias."""
    saved = (
        ("y", "reserve", "mask")
        if "masked" in call.op
        else ("bias", "bias", "y", "state", "reserve")
    )
    names = _present(("y", "state", "state", "x", "state", "state", "w_ih", "w_hh", *saved), call)
    results = ("x", "state", "state", "w_ih", "w_hh", "bias")
    sizes = _lstm_sizes(call.operands[names.index("x")], call.operands[names.index("w_hh")])
    batch = frozenset({B})
    grads = frozenset(range(sum(isinstance(argument, Ref) for argument in call.args[:3])))
    return Signature(
        kind="lstm",
        sizes=sizes,
        operands=tuple(map(_lstm_letters, names)),
        results=tuple(map(_lstm_letters, results)),
        fixed=frozenset({T, X_IN, GATES, H_IN, FIVE}),
        inner=frozenset({H}),
        contiguous=frozenset({H}),
        names=_LSTM_NAMES,
        cost=_lstm_cost(2),
        linear=(grads,),
        reduced=(frozenset({H}), frozenset(), frozenset(), batch, batch, batch),
        inner_traffic=lambda s, ranks: (
            ("reduce_scatter", float(s[B] * s[H] * ranks), s[T]),
            ("all_gather", float(s[T] * s[B] * s[H] * ranks), 1),
        ),
    )


def _recurrent_sizes(x: tuple[int, ...], w_hh: tuple[int, ...], mode: str) -> tuple[int, ...]:
    hidden = w_hh[1]
    return (x[0], x[1], x[2], w_hh[0] // hidden, hidden, hidden, 4 if mode.endswith("gru") else 1)


def _recurrent_cost(passes: int) -> Any:
    def cost(s: tuple[int, ...]) -> OpCost:
        rows = s[GATES] * s[H]
        flops = 2.0 * s[T] * s[B] * rows * (s[X_IN] + s[H_IN]) * passes
        weights = rows * (s[X_IN] + s[H_IN]) * s[T] * passes
        elements = float(weights + s[T] * s[B] * (s[X_IN] + 3 * rows) * passes)
        return OpCost(
            flops=flops, elements=elements, gemm=(1, s[B], rows, s[H_IN]), steps=s[T] * passes
        )

    return cost


@register("shardwright.recurrent", "shardwright.masked_recurrent", localize=_unit_group)
def _recurrent(call: Call) -> Signature:
    """x, h0, w_ih, w_hh, (b_ih, b_hh), (mask) -> y, h, reserve: as an LSTM."""
    names, mode = (
        _present(("x", "state", "w_ih", "w_hh", "bias", "bias", "mask"), call),
        call.args[-1],
    )
    gathers = 2 if mode == "reset-gru" else 1
    return Signature(
        kind="lstm",
        sizes=_recurrent_sizes(call.operands[0], call.operands[3], mode),
        operands=tuple(map(_lstm_letters, names)),
        results=tuple(map(_lstm_letters, ("y", "state", "reserve"))),
        fixed=frozenset({T, X_IN, GATES, H_IN, FIVE}),
        reduced=(frozenset(),) * 3,
        inner=frozenset({H}),
        contiguous=frozenset({H}),
        opaque=frozenset({2}),
        names=_LSTM_NAMES,
        cost=_recurrent_cost(1),
        inner_traffic=lambda s, ranks: (
            ("all_gather", float(s[B] * s[H] * ranks), s[T] * gathers),
        ),
    )


@register(
    "shardwright.recurrent_backward", "shardwright.masked_recurrent_backward", localize=_unit_group
)
def _recurrent_backward(call: Call) -> Signature:
    """Gradients of y (h), then the saved tensors -> gradients of x, h0, w_ih, w_hh and both
    biases."""
    names, mode = (
        _present(("y", "state", "x", "state", "w_ih", "w_hh", "y", "reserve", "mask"), call),
        call.args[-1],
    )
    times = 2 if mode == "reset-gru" else 1
    sizes = _recurrent_sizes(
        call.operands[names.index("x")], call.operands[names.index("w_hh")], mode
    )
    batch = frozenset({B})
    grads = frozenset(range(sum(isinstance(argument, Ref) for argument in call.args[:2])))
    return Signature(
        kind="lstm",
        sizes=sizes,
        operands=tuple(map(_lstm_letters, names)),
        results=tuple(map(_lstm_letters, ("x", "state", "w_ih", "w_hh", "bias", "bias"))),
        fixed=frozenset({T, X_IN, GATES, H_IN, FIVE}),
        inner=frozenset({H}),
        contiguous=frozenset({H}),
        names=_LSTM_NAMES,
        cost=_recurrent_cost(2),
        linear=(grads,),
        reduced=(frozenset({H}), frozenset(), batch, batch, batch, batch),
        inner_traffic=lambda s, ranks: (
            ("reduce_scatter", float(s[B] * s[H] * ranks), s[T] * times),
            ("all_gather", float(s[T] * s[B] * s[H] * ranks), times),
        ),
    )


# ---------------------------------------------------------------------------------------- attention


BATCH, KV_HEADS, QUERIES, DEPTH, KEYS, VALUE_DEPTH, GROUP = range(
    7
)  # the letters of attention; heads are (KV_HEADS, GROUP)

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
        elements += (
            passes * 4 * heads * s[QUERIES] * s[KEYS] if biased else 0
        )  # scores are stored: no fused kernel
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


# ------------------------------------------------------------------------------ classification loss


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
