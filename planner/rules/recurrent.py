"""Recurrent layers: LSTM, GRU and plain ones, with and without a mask (`planner.kernels`)."""

from __future__ import annotations

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
