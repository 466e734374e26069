"""Normalisation over dims, groups of channels or the batch, and by the root of the mean square."""

from __future__ import annotations

import math

from planner.graph.graph import Group
from planner.rules.signature import Call, Letters, Local, LocalCall, OpCost, Signature, register

N, G, C = range(3)  # group norm: batch, groups, channels of a group; then the windows


def _group_letters(shape: tuple[int, ...], groups: int) -> tuple[tuple[int, ...], Letters]:
    sizes = (shape[0], groups, shape[1] // groups, *shape[2:])
    return sizes, ((N,), (G, C), *((d + 1,) for d in range(2, len(shape))))


def _local_group_sizes(call: Call, local: Local) -> LocalCall:
    """Group norm takes its batch, channels, positions and groups as arguments after its tensors:
    these become local."""
    at = 5 if "backward" in call.op else 3
    s = local.sizes
    return (
        call.op,
        (*call.args[:at], s[N], s[G] * s[C], call.args[at + 2], s[G], *call.args[at + 4 :]),
        call.kwargs,
    )


@register("aten.native_group_norm.default", localize=_local_group_sizes)
def _group_norm(call: Call) -> Signature:
    """x, weight, bias -> result, mean, 1/deviation: batch and groups can be split."""
    sizes, x = _group_letters(call.operands[0], call.args[6])
    stats = ((N,), (G,))
    return Signature(
        kind="norm",
        sizes=sizes,
        operands=(x, *((((G, C),),) * (len(call.operands) - 1))),
        results=(x, stats, stats),
        fixed=frozenset(range(C, len(sizes))),
    )


@register("aten.native_group_norm_backward.default", localize=_local_group_sizes)
def _group_norm_backward(call: Call) -> Signature:
    """grad, x, mean, 1/deviation, weight -> gradients of x, weight and bias, the latter partial
    over the batch."""
    sizes, x = _group_letters(call.operands[1], call.args[8])
    stats, weight = ((N,), (G,)), ((G, C),)
    mask = call.args[9]
    return Signature(
        kind="norm",
        sizes=sizes,
        operands=(x, x, stats, stats, *((weight,) * (len(call.operands) - 4))),
        results=(
            x if mask[0] else ((),),
            weight if mask[1] else ((),),
            weight if mask[2] else ((),),
        ),
        fixed=frozenset(range(C, len(sizes))),
        reduced=(frozenset(), frozenset({N}), frozenset({N})),
        linear=(frozenset({0}),),
    )


def _batch_letters(shape: tuple[int, ...], training: bool) -> tuple[Letters, frozenset[int]]:
    """x's letters, and the fixed ones: those over which the batch's statistics are taken."""
    over = frozenset(d for d in range(len(shape)) if d != 1)
    return tuple((d,) for d in range(len(shape))), over if training else frozenset()


@register("aten.native_batch_norm.default")
def _batch_norm(call: Call) -> Signature:
    """x, weight, bias, mean, variance -> result and, in training, the batch's mean and
    1/deviation."""
    x, fixed = _batch_letters(call.operands[0], call.args[5])
    stats: Letters = ((1,),) if call.args[5] else ((),)
    return Signature(
        kind="norm",
        sizes=call.operands[0],
        operands=(x, *((((1,),),) * (len(call.operands) - 1))),
        results=(x, stats, stats),
        fixed=fixed,
    )


@register("aten.native_batch_norm_backward.default")
def _batch_norm_backward(call: Call) -> Signature:
    """grad, x, weight, mean, variance, saved mean and 1/deviation -> gradients of x, weight and
    bias."""
    x, fixed = _batch_letters(call.operands[1], call.args[7])
    over, channel = frozenset(d for d in range(len(x)) if d != 1), ((1,),)
    mask = call.args[9]
    saved: tuple[Letters, ...] = (channel if call.args[7] else ((),),) * 2
    return Signature(
        kind="norm",
        sizes=call.operands[1],
        operands=(x, x, *((channel,) * (len(call.operands) - 4)), *saved),
        results=(
            x if mask[0] else ((),),
            channel if mask[1] else ((),),
            channel if mask[2] else ((),),
        ),
        fixed=fixed,
        reduced=(frozenset(), over, over),
        linear=(frozenset({0}),),
    )


# ------------------------------------------------------------------------------ a batch in training


def _statistics_group(call: Call, local: Local) -> LocalCall:
    """If a letter is split over which the statistics are taken, the kernel gets the process group
    over which it combines them."""
    axes = sorted(a for letter, split in local.split.items() if letter != 1 for a in split)
    return call.op, call.args, (("group", Group(tuple(axes))),) if axes else ()


def _training_norm(call: Call, x_at: int, backward: bool) -> Signature:
    """Every dim can be split. The statistics are combined inside, unless channels are split."""
    shape = call.operands[x_at]
    x, channel = tuple((d,) for d in range(len(shape))), ((1,),)
    return Signature(
        kind="norm",
        sizes=shape,
        operands=tuple(x if len(s) == len(shape) else channel for s in call.operands),
        results=(x, channel, channel) if backward else (x, *(channel,) * 4),
        linear=(frozenset({0}),) if backward else (),
        inner=frozenset(d for d in range(len(shape)) if d != 1),
        names=((1, "channels"),),
        inner_traffic=lambda s, ranks: (
            ("all_reduce", 2.0 * s[1] + 1, 1)
            if backward
            else ("all_gather", (2.0 * s[1] + 1) * ranks, 1),
        ),
        cost=lambda s: OpCost(
            flops=(14.0 if backward else 8.0) * math.prod(s),
            elements=(5.0 if backward else 3.0) * math.prod(s),
        ),
    )


@register("shardwright.batch_norm", localize=_statistics_group)
def _batch_norm_training(call: Call) -> Signature:
    """x, weight, bias, running mean and variance -> result, mean, 1/deviation, new running mean
    and variance."""
    return _training_norm(call, 0, backward=False)


@register("shardwright.batch_norm_backward", localize=_statistics_group)
def _batch_norm_training_backward(call: Call) -> Signature:
    """grad, x, weight, mean, 1/deviation -> gradients of x, weight and bias."""
    return _training_norm(call, 1, backward=True)


# -------------------------------------------------------------------------- root of the mean square


def _sums_group(call: Call, local: Local) -> LocalCall:
    """If a letter is split over which the mean is taken, the kernel gets the process group over
    which it adds its sums."""
    x_at = 1 if "backward" in call.op else 0
    rank = len(call.operands[x_at])
    axes = sorted(
        a
        for letter, split in local.split.items()
        if letter >= rank - _normalised(call)
        for a in split
    )
    return call.op, call.args, (("group", Group(tuple(axes))),) if axes else ()


def _normalised(call: Call) -> int:
    """How many of the last dims the mean is taken over."""
    dims: int = call.args[4 if "backward" in call.op else 2]
    return dims


def _root_mean_square(call: Call, x_at: int, backward: bool) -> Signature:
    """Every dim can be split; if a normalised one is, its sums are added inside."""
    x = call.operands[x_at]
    rank, lead = len(x), len(x) - _normalised(call)
    whole, tail = tuple((d,) for d in range(rank)), tuple((d,) for d in range(lead, rank))
    stats = tuple((d,) if d < lead else () for d in range(rank))
    weight = (tail,) if _has_weight(call, x_at) else ()
    return Signature(
        kind="norm",
        sizes=x,
        operands=(whole, whole, *weight, stats) if backward else (whole, *weight),
        results=(whole, tail if weight else ((),)) if backward else (whole, stats),
        reduced=(frozenset(), frozenset(range(lead))) if backward else (),
        linear=(frozenset({0}),) if backward else (),
        inner=frozenset(range(lead, rank)),
        inner_traffic=lambda s, ranks: (("all_reduce", float(math.prod(s[:lead])), 1),),
        cost=lambda s: OpCost(
            flops=(12.0 if backward else 5.0) * math.prod(s),
            elements=(3.0 if backward else 2.0) * math.prod(s),
        ),
    )


def _has_weight(call: Call, x_at: int) -> bool:
    return call.args[x_at + 1] is not None


@register("shardwright.rms_norm", localize=_sums_group)
def _rms_norm(call: Call) -> Signature:
    """x, weight -> result, 1/root."""
    return _root_mean_square(call, 0, backward=False)


@register("shardwright.rms_norm_backward", localize=_sums_group)
def _rms_norm_backward(call: Call) -> Signature:
    """grad, x, weight, 1/root -> gradients of x and weight, the latter partial over the leading
    dims."""
    return _root_mean_square(call, 1, backward=True)


@register("aten.native_layer_norm.default")
def _layer_norm(call: Call) -> Signature:
    """Leading dims can be split, normalised dims cannot."""
    x = call.operands[0]
    rank, lead = len(x), len(x) - len(call.args[1])
    whole, tail = tuple((d,) for d in range(rank)), tuple((d,) for d in range(lead, rank))
    stats = tuple((d,) if d < lead else () for d in range(rank))
    return Signature(
        kind="norm",
        sizes=x,
        operands=(whole, *((tail,) * (len(call.operands) - 1))),
        results=(whole, stats, stats),
        fixed=frozenset(range(lead, rank)),
        cost=lambda s: OpCost(flops=8.0 * math.prod(s), elements=2.0 * math.prod(s)),
    )


@register("aten.native_layer_norm_backward.default")
def _layer_norm_backward(call: Call) -> Signature:
    """grad, x, mean, rstd, weight, bias -> grad_x, and grad_weight and grad_bias, partial over
    the leading dims."""
    x = call.operands[1]
    rank, lead = len(x), len(x) - len(call.args[2])
    whole, tail = tuple((d,) for d in range(rank)), tuple((d,) for d in range(lead, rank))
    stats = tuple((d,) if d < lead else () for d in range(rank))
    leading = frozenset(range(lead))
    mask = call.args[7]
    results = (whole if mask[0] else ((),), tail if mask[1] else ((),), tail if mask[2] else ((),))
    return Signature(
        kind="norm",
        sizes=x,
        operands=(whole, whole, stats, stats, *((tail,) * (len(call.operands) - 4))),
        results=results,
        fixed=frozenset(range(lead, rank)),
        reduced=(frozenset(), leading, leading),
        linear=(frozenset({0}),),
        cost=lambda s: OpCost(flops=14.0 * math.prod(s), elements=3.0 * math.prod(s)),
    )
