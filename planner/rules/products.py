"""Matrix products, convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable

from planner.rules.signature import Call, Letters, Local, LocalCall, OpCost, Signature, register


@register("aten.mm.default")
def _mm(call: Call) -> Signature:
    """[m, k] x [k, n]: splitting k leaves a partial sum."""
    (m, k), (_, n) = call.operands
    return Signature(
        kind="gemm",
        sizes=(m, k, n),
        operands=(((0,), (1,)), ((1,), (2,))),
        results=(((0,), (2,)),),
        reduced=(frozenset({1}),),
        linear=(frozenset({0}), frozenset({1})),
        cost=lambda s: _product(1, s[0], s[2], s[1]),
    )


@register("aten.bmm.default")
def _bmm(call: Call) -> Signature:
    """[b, m, k] x [b, k, n]."""
    (b, m, k), (_, _, n) = call.operands
    return Signature(
        kind="gemm",
        sizes=(b, m, k, n),
        operands=(((0,), (1,), (2,)), ((0,), (2,), (3,))),
        results=(((0,), (1,), (3,)),),
        reduced=(frozenset({2}),),
        linear=(frozenset({0}), frozenset({1})),
        cost=lambda s: _product(s[0], s[1], s[3], s[2]),
    )


def _product(b: int, m: int, n: int, k: int) -> OpCost:
    return OpCost(
        flops=2.0 * b * m * n * k, elements=float(b * (m * k + k * n + m * n)), gemm=(b, m, n, k)
    )


# -------------------------------------------------------------------------------------- convolution

# Batch, groups, input and output channels of a group; then the windows of x, weight and result.
N, G, CI, CO = range(4)


def _convolution_letters(
    x: tuple[int, ...], weight: tuple[int, ...], out: tuple[int, ...], transposed: bool, groups: int
) -> tuple[tuple[int, ...], tuple[Letters, Letters, Letters]]:
    """Letter sizes, and the letters of x, weight and result. A transposed convolution has its
    input channels first."""
    windows = len(x) - 2
    sizes = (x[0], groups, x[1] // groups, out[1] // groups, *x[2:], *weight[2:], *out[2:])
    at_x, at_w, at_out = (tuple((4 + i * windows + j,) for j in range(windows)) for i in range(3))
    first, second = (CI, CO) if transposed else (CO, CI)
    letters = (((N,), (G, CI), *at_x), ((G, first), (second,), *at_w), ((N,), (G, CO), *at_out))
    return sizes, letters


def _convolution_cost(
    windows: int, transposed: bool, times: int
) -> Callable[[tuple[int, ...]], OpCost]:
    """The cost of a convolution as a product per group: [batch x positions, in x kernel] x [in x
    kernel, out]."""

    def cost(s: tuple[int, ...]) -> OpCost:
        x, kernel, out = (math.prod(s[4 + i * windows : 4 + (i + 1) * windows]) for i in range(3))
        m, n, k = s[N] * (x if transposed else out), s[CO], s[CI] * kernel
        elements = s[G] * (s[N] * (s[CI] * x + s[CO] * out) + s[CI] * s[CO] * kernel)
        return OpCost(
            flops=2.0 * s[G] * m * n * k * times,
            elements=float(elements * times),
            gemm=(s[G], m, n, k),
        )

    return cost


def _local_groups(call: Call, local: Local) -> LocalCall:
    return call.op, (*call.args[:8], local.sizes[G]), call.kwargs


@register("aten.convolution.default", localize=_local_groups)
def _convolution(call: Call) -> Signature:
    """x, weight -> result (the bias is traced as an op of its own). Batch, groups and channels can
    be split; windows cannot, since that takes halos."""
    x, weight = call.operands
    (out,) = call.results
    sizes, (at_x, at_w, at_out) = _convolution_letters(x, weight, out, call.args[6], call.args[8])
    return Signature(
        kind="conv",
        sizes=sizes,
        operands=(at_x, at_w),
        results=(at_out,),
        fixed=frozenset(range(4, len(sizes))),
        reduced=(frozenset({CI}),),
        linear=(frozenset({0}), frozenset({1})),
        names=_CONVOLUTION_NAMES,
        cost=_convolution_cost(len(x) - 2, call.args[6], 1),
    )


_CONVOLUTION_NAMES = ((N, "batch"), (G, "groups"), (CI, "input channels"), (CO, "output channels"))


def _local_bias_and_groups(call: Call, local: Local) -> LocalCall:
    """The bias size and the number of groups become local."""
    bias = None if call.args[3] is None else (local.sizes[G] * local.sizes[CO],)
    return (
        call.op,
        (*call.args[:3], bias, *call.args[4:9], local.sizes[G], call.args[10]),
        call.kwargs,
    )


@register("aten.convolution_backward.default", localize=_local_bias_and_groups)
def _convolution_backward(call: Call) -> Signature:
    """grad, x, weight -> gradients of x (partial over output channels), weight and bias (partial
    over the batch)."""
    out, x, weight = call.operands
    mask = call.args[10]
    sizes, (at_x, at_w, at_out) = _convolution_letters(x, weight, out, call.args[7], call.args[9])
    wanted: tuple[Letters, ...] = (at_x, at_w, ((G, CO),))
    sums = (frozenset({CO}), frozenset({N}), frozenset({N}))
    return Signature(
        kind="conv",
        sizes=sizes,
        operands=(at_out, at_x, at_w),
        results=tuple(
            letters if want else ((),) for letters, want in zip(wanted, mask, strict=True)
        ),
        fixed=frozenset(range(4, len(sizes))),
        reduced=tuple(s if w else frozenset() for s, w in zip(sums, mask, strict=True)),
        linear=(frozenset({0}),),
        names=_CONVOLUTION_NAMES,
        cost=_convolution_cost(len(x) - 2, call.args[7], sum(bool(m) for m in mask[:2])),
    )


# ------------------------------------------------------------------------------------------ pooling

#: Which tensors of a call have the windows of the input (`i`) and which those of the output (`o`):
#: operands, then results. The gradients of maxima do not check that an index is within the image,
#: so they must not be left to discovery.
_POOLS = {
    "aten.max_pool2d_with_indices.default": ("i", "oo"),
    "aten.max_pool2d_with_indices_backward.default": ("oio", "i"),
    "aten.max_pool3d_with_indices.default": ("i", "oo"),
    "aten.max_pool3d_with_indices_backward.default": ("oio", "i"),
    "aten.adaptive_max_pool2d.default": ("i", "oo"),
    "aten.adaptive_max_pool2d_backward.default": ("oio", "i"),
    "aten.adaptive_max_pool3d.default": ("i", "oo"),
    "aten.adaptive_max_pool3d_backward.default": ("oio", "i"),
    "aten.fractional_max_pool2d_backward.default": ("oio", "i"),
    "aten.fractional_max_pool3d_backward.default": ("oio", "i"),
    "aten.avg_pool2d.default": ("i", "o"),
    "aten.avg_pool2d_backward.default": ("oi", "i"),
    "aten.avg_pool3d.default": ("i", "o"),
    "aten.avg_pool3d_backward.default": ("oi", "i"),
    "aten._adaptive_avg_pool2d.default": ("i", "o"),
    "aten._adaptive_avg_pool2d_backward.default": ("oi", "i"),
    "aten._adaptive_avg_pool3d.default": ("i", "o"),
    "aten._adaptive_avg_pool3d_backward.default": ("oi", "i"),
    "aten.upsample_nearest2d.default": ("i", "o"),
    "aten.upsample_nearest2d_backward.default": ("o", "i"),
    "aten.upsample_bilinear2d.default": ("i", "o"),
    "aten.upsample_bilinear2d_backward.default": ("o", "i"),
}


def _local_input_size(call: Call, local: Local) -> LocalCall:
    """The backward of up-sampling takes the input's shape as an argument: it becomes local."""
    if "upsample" not in call.op or "backward" not in call.op:
        return call.op, call.args, call.kwargs
    return call.op, (*call.args[:2], local.results[0], *call.args[3:]), call.kwargs


@register(*_POOLS, localize=_local_input_size)
def _pool(call: Call) -> Signature:
    """Batch and channels can be split, windows cannot. All but the maximum itself are linear in
    their first operand."""
    windows = int(call.op.split("d.")[0].split("d_")[0][-1])
    roles = "".join(_POOLS[call.op])
    shapes = dict(zip(roles, (*call.operands, *call.results), strict=True))
    lead = len(shapes["i"]) - windows
    sizes = (*shapes["i"], *shapes["o"][lead:])
    passing = tuple((d,) for d in range(lead))
    letters: dict[str, Letters] = {
        "i": (*passing, *((lead + d,) for d in range(windows))),
        "o": (*passing, *((lead + windows + d,) for d in range(windows))),
    }
    linear = () if "max" in call.op and "backward" not in call.op else (frozenset({0}),)
    return Signature(
        kind="reduction",
        sizes=sizes,
        operands=tuple(letters[r] for r in _POOLS[call.op][0]),
        results=tuple(letters[r] for r in _POOLS[call.op][1]),
        fixed=frozenset(range(lead, len(sizes))),
        linear=linear,
    )


# ------------------------------------------------------------------------------- Fourier transforms


@register("aten._fft_c2c.default", "aten._fft_r2c.default", "aten._fft_c2r.default")
def _fourier(call: Call) -> Signature:
    """Transformed dims cannot be split, and may change their size; others can be split. Not left
    to discovery: the kernels trust the size of the result that they are given."""
    (before,), (after,) = call.operands, call.results
    rank, over = len(before), {d % max(len(before), 1) for d in call.args[1]}
    results = tuple((rank + d,) if d in over else (d,) for d in range(rank))
    return Signature(
        kind="copy",
        sizes=(*before, *after),
        operands=(tuple((d,) for d in range(rank)),),
        results=(results,),
        fixed=frozenset(over) | frozenset(range(rank, 2 * rank)),
        linear=(frozenset({0}),),
    )
