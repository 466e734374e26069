"""Matrix products, convolutions and pooling."""

from __future__ import annotations

import math

from planner.rules.signature import Call, OpCost, Signature, register


@register("aten.mm.default")
def _mm(call: Call) -> Signature:
    """[m, k] x [k, n]: splitting k leaves a partial sum."""
    (m, k), (_, n) = call.operands
    return Signature(
        kind="gemm", sizes=(m, k, n), operands=(((0,), (1,)), ((1,), (2,))), results=(((0,), (2,)),),
        reduced=(frozenset({1}),), linear=(frozenset({0}), frozenset({1})), cost=lambda s: _product(1, s[0], s[2], s[1]),
    )  # fmt: skip


@register("aten.bmm.default")
def _bmm(call: Call) -> Signature:
    """[b, m, k] x [b, k, n]."""
    (b, m, k), (_, _, n) = call.operands
    return Signature(
        kind="gemm", sizes=(b, m, k, n), operands=(((0,), (1,), (2,)), ((0,), (2,), (3,))), results=(((0,), (1,), (3,)),),
        reduced=(frozenset({2}),), linear=(frozenset({0}), frozenset({1})), cost=lambda s: _product(s[0], s[1], s[3], s[2]),
    )  # fmt: skip


def _product(b: int, m: int, n: int, k: int) -> OpCost:
    return OpCost(flops=2.0 * b * m * n * k, elements=float(b * (m * k + k * n + m * n)), gemm=(b, m, n, k))


def _conv_gemm(x: tuple[int, ...], weight: tuple[int, ...], out: tuple[int, ...], times: int) -> OpCost:
    """A convolution as the product it is: [batch x positions, in x kernel] x [in x kernel, out]."""
    m, n, k = out[0] * math.prod(out[2:]), weight[0], math.prod(weight[1:])
    elements = math.prod(x) + math.prod(weight) + math.prod(out)
    return OpCost(flops=2.0 * m * n * k * times, elements=float(elements * times), gemm=(1, m, n, k))


def _window_letters(first: int, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple((first + i,) for i in range(len(shape)))


@register("aten.convolution.default")
def _convolution(call: Call) -> Signature:
    """[b, c, ...] * [o, c, ...]: batch, input and output channels can be split; windows cannot (they would need halos), and
    neither can the channels of a grouped convolution."""
    x, weight, *_ = call.operands
    (out,) = call.results
    groups = call.args[8]
    sizes = (x[0], x[1], weight[0], *x[2:], *weight[1:], *out[2:])
    windows = len(x) - 2
    at_x, at_w, at_out = 3, 3 + windows, 4 + 2 * windows
    channel = (1,) if groups == 1 else (at_w,)
    fixed = frozenset(range(3, len(sizes))) | (frozenset({1, 2}) if groups != 1 else frozenset())
    return Signature(
        kind="conv", sizes=sizes,
        operands=(((0,), (1,), *_window_letters(at_x, x[2:])), ((2,), channel, *_window_letters(at_w + 1, weight[2:]))),
        results=(((0,), (2,), *_window_letters(at_out, out[2:])),), fixed=fixed,
        reduced=(frozenset({1}) if groups == 1 else frozenset(),), linear=(frozenset({0}), frozenset({1})),
        cost=lambda s: _conv_gemm(
            (s[0], s[1], *s[at_x:at_w]), (s[2], s[1] if groups == 1 else s[at_w], *s[at_w + 1 : at_out]), (s[0], s[2], *s[at_out:]), 1
        ),
    )  # fmt: skip


@register("aten.convolution_backward.default")
def _convolution_backward(call: Call) -> Signature:
    """grad_out, x, weight -> grad_x, grad_weight (the bias's gradient is a sum that is traced on its own)."""
    out, x, weight = call.operands
    groups, mask = call.args[9], call.args[10]
    windows = len(x) - 2
    sizes = (x[0], x[1], weight[0], *x[2:], *weight[1:], *out[2:])
    at_x, at_w, at_out = 3, 3 + windows, 4 + 2 * windows
    channel = (1,) if groups == 1 else (at_w,)
    letters_x = ((0,), (1,), *_window_letters(at_x, x[2:]))
    letters_w = ((2,), channel, *_window_letters(at_w + 1, weight[2:]))
    letters_out = ((0,), (2,), *_window_letters(at_out, out[2:]))
    fixed = frozenset(range(3, len(sizes))) | (frozenset({1, 2}) if groups != 1 else frozenset())
    used = sum(bool(m) for m in mask[:2])
    return Signature(
        kind="conv", sizes=sizes, operands=(letters_out, letters_x, letters_w),
        results=(letters_x if mask[0] else ((),), letters_w if mask[1] else ((),), ((2,),) if mask[2] else ((),)), fixed=fixed,
        reduced=(frozenset({2}) if mask[0] else frozenset(), frozenset({0}) if mask[1] else frozenset(), frozenset({0})),
        linear=(frozenset({0}),),
        cost=lambda s: _conv_gemm(
            (s[0], s[1], *s[at_x:at_w]), (s[2], s[1] if groups == 1 else s[at_w], *s[at_w + 1 : at_out]), (s[0], s[2], *s[at_out:]),
            used,
        ),
    )  # fmt: skip


def _pool_signature(call: Call, operands: int) -> Signature:
    """Batch and channels pass; windows cannot be split."""
    big = max((*call.operands, *call.results), key=math.prod)
    small = min((*call.operands, *call.results), key=math.prod)
    sizes = (*big, *small[-2:])
    lead = len(big) - 2
    letters = {
        big: (*((d,) for d in range(lead)), (lead,), (lead + 1,)),
        small: (*((d,) for d in range(lead)), (lead + 2,), (lead + 3,)),
    }
    return Signature(
        kind="reduction", sizes=sizes, operands=tuple(letters[shape] for shape in call.operands),
        results=tuple(letters[shape] for shape in call.results), fixed=frozenset(range(lead, lead + 4)),
    )  # fmt: skip


@register("aten.max_pool2d_with_indices.default")
def _max_pool(call: Call) -> Signature:
    return _pool_signature(call, 1)


@register("aten.max_pool2d_with_indices_backward.default")
def _max_pool_backward(call: Call) -> Signature:
    signature = _pool_signature(call, 3)
    return _with_linear(signature, frozenset({0}))


@register("aten.avg_pool2d.default", "aten._adaptive_avg_pool2d.default")
def _avg_pool(call: Call) -> Signature:
    return _with_linear(_pool_signature(call, 1), frozenset({0}))


@register("aten.avg_pool2d_backward.default", "aten._adaptive_avg_pool2d_backward.default")
def _avg_pool_backward(call: Call) -> Signature:
    return _with_linear(_pool_signature(call, 2), frozenset({0}))


def _with_linear(signature: Signature, group: frozenset[int]) -> Signature:
    from dataclasses import replace

    return replace(signature, linear=(group,))
