"""`shardwright::batch_norm` in training mode and its backward: statistics over the whole batch,
on however many ranks.

With a group, the batch (or positions of its samples) is split over it. Each rank's count, means and
squared deviations are gathered and combined (Chan, Golub and LeVeque, "Algorithms for computing the
sample variance", 1983), so the result is that of one process. New running statistics are returned:
nothing is written in place.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from planner.kernels.groups import gathered, reduced

__all__ = ["batch_norm", "batch_norm_backward"]

Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    group: dist.ProcessGroup | None = None,
) -> Five:
    """x [N, C, ...] normalised, the batch's mean and 1/deviation [C], and the new running mean
    and variance (unbiased) [C]."""
    old_mean, old_var = _running(x, running_mean, running_var)
    if group is None:
        arguments = x, weight, bias, old_mean, old_var, True, momentum, eps
        out, mean, rstd, new_mean, new_var = torch.ops.aten._native_batch_norm_legit_functional(
            *arguments
        )
        return out, mean, rstd, new_mean, new_var
    count, mean, squares = _joined(x, group)
    var = squares / count
    # The kernel takes weights in the format of x or of the statistics, but of one of the two.
    scale, shift = (None if w is None else w.to(mean.dtype) for w in (weight, bias))
    out = torch.native_batch_norm(x, scale, shift, mean, var, False, momentum, eps)[0]
    new_mean = old_mean * (1 - momentum) + momentum * mean
    new_var = old_var * (1 - momentum) + momentum * squares / (count - 1)
    running = new_mean.to(old_mean.dtype), new_var.to(old_var.dtype)
    return out, mean, (var + eps).rsqrt(), *running


def batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias; with a group, the latter two are whole on every rank."""
    if group is None:
        ones = torch.ones_like(mean) if weight is None else weight
        arguments = grad, x, ones, None, None, mean, rstd, True, eps, [True, True, True]
        gx, gw, gb = torch.ops.aten.native_batch_norm_backward(*arguments)
        return gx, gw, gb
    over, shape = _over(x), [1, -1, *[1] * (x.dim() - 2)]
    centred = x - mean.view(shape)
    count = mean.new_full((1,), x.numel() // x.shape[1])
    local = torch.cat(
        [count, grad.sum(over).to(mean.dtype), (grad * centred).sum(over).to(mean.dtype)]
    )
    sums = reduced(local, group)
    count, gb, along = sums[:1], *sums[1:].chunk(2)
    inner = grad - (gb / count).view(shape) - centred * (along * rstd**2 / count).view(shape)
    gx = inner * (rstd if weight is None else rstd * weight).view(shape)
    like = mean if weight is None else weight
    return gx.to(x.dtype), (along * rstd).to(like.dtype), gb.to(like.dtype)


def _over(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


def _running(x: Tensor, mean: Tensor | None, var: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    zeros = x.new_zeros(x.shape[1], dtype=dtype) if mean is None or var is None else None
    return (mean if zeros is None else zeros), (var if zeros is None else zeros)  # type: ignore[return-value]


def _joined(x: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Over all ranks: the number of values per channel, their mean [C], and the sum of their
    squared deviations [C]."""
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    var, mean = torch.var_mean(wide, _over(x), correction=0)
    count = mean.new_full((1,), x.numel() // x.shape[1])
    found = gathered(torch.cat([count, mean, var * count]), group)
    counts, means, squares = found[:, :1], *found[:, 1:].chunk(2, 1)
    total = counts.sum(0)
    whole = (counts * means).sum(0) / total
    return total, whole, (squares + counts * (means - whole) ** 2).sum(0)


@torch.library.custom_op("shardwright::batch_norm", mutates_args=())
def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return batch_norm(x, weight, bias, running_mean, running_var, momentum, eps)


@torch.library.custom_op("shardwright::batch_norm_backward", mutates_args=())
def _batch_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return batch_norm_backward(grad, x, weight, mean, rstd, eps)


@_batch_norm.register_fake
def _(
    x: Tensor,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: float,
    eps: float,
) -> Five:
    old_mean, old_var = _running(x, running_mean, running_var)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    stats = [x.new_empty(x.shape[1], dtype=dtype) for _ in range(2)]
    return (
        torch.empty_like(x),
        stats[0],
        stats[1],
        torch.empty_like(old_mean),
        torch.empty_like(old_var),
    )


@_batch_norm_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Any, mean: Tensor, rstd: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    like = mean if weight is None else weight
    return torch.empty_like(x), torch.empty_like(like), torch.empty_like(like)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, _, _, ctx.eps = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight, output[1], output[2])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    x, weight, mean, rstd = ctx.saved_tensors
    gx, gw, gb = torch.ops.shardwright.batch_norm_backward(grad, x, weight, mean, rstd, ctx.eps)
    return gx, None if weight is None else gw, gb if ctx.has_bias else None, None, None, None, None


_batch_norm.register_autograd(_differentiate, setup_context=_save)
