"""`shardwright::rms_norm` and its backward: x / sqrt(mean(x^2) + eps), scaled, in one kernel if the
device has one.

CUDA has a kernel for each. A CPU has none: there, backward is layer norm's kernel with a mean of 0.
That subtracts rstd times the mean of the scaled gradient too much, which is added back; it is 10
times as fast as the formula's eleven passes. With a group, the normalised values are split over it:
each rank's sums are added, so the result is that of one process.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from planner.kernels.groups import reduced

__all__ = ["rms_norm", "rms_norm_backward"]


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    dims: int,
    count: int,
    eps: float,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """x normalised over its last `dims` dims, which have `count` values on all ranks of the group
    together, and 1/root [..., 1] in the dtype of sums."""
    shape = x.shape[x.dim() - dims :]
    if x.is_cuda and group is None:
        out, rstd = torch.ops.aten._fused_rms_norm(x, list(shape), weight, eps)
        return out, rstd
    wide = x.to(_wide(x))
    squares = torch.linalg.vector_norm(wide, dim=_last(dims), keepdim=True).square_()
    rstd = _added(squares, group).div_(count).add_(eps).rsqrt_()
    out = wide * rstd
    return (out if weight is None else out.mul_(weight)).to(x.dtype), rstd


def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    dims: int,
    count: int,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight (a single zero if there is no weight)."""
    shape, affine = list(x.shape[x.dim() - dims :]), weight is not None
    if x.is_cuda and group is None:
        gx, gw = torch.ops.aten._fused_rms_norm_backward(
            grad, x, shape, rstd.contiguous(), weight, [True, affine]
        )
        return gx, gw if affine else grad.new_zeros(1)
    wide_grad, wide = grad.to(rstd.dtype), x.to(rstd.dtype)
    scale = None if weight is None else weight.to(rstd.dtype)
    if group is None:
        gx, gw = _by_layer_norm(wide_grad, wide, scale, rstd, shape, count)
    else:
        gx, gw = _by_formula(wide_grad, wide, scale, rstd, dims, count, group)
    return gx.to(x.dtype), gw.to(x.dtype) if affine else grad.new_zeros(1)


def _by_layer_norm(
    grad: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor, shape: list[int], count: int
) -> tuple[Tensor, Tensor]:
    arguments = (
        grad.contiguous(),
        x.contiguous(),
        shape,
        torch.zeros_like(rstd),
        rstd.contiguous(),
        weight,
        None,
    )
    gx, gw, _ = torch.ops.aten.native_layer_norm_backward(
        *arguments, [True, weight is not None, False]
    )
    rows = grad.reshape(rstd.numel(), count)
    means = rows.sum(1) if weight is None else torch.mv(rows, weight.reshape(-1))
    return gx.add_(means.view_as(rstd).mul_(rstd).div_(count)), gw


def _by_formula(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    dims: int,
    count: int,
    group: dist.ProcessGroup,
) -> tuple[Tensor, Tensor]:
    scaled = grad if weight is None else grad * weight
    along = _added((scaled * x).sum(_last(dims), keepdim=True), group)
    gx = scaled * rstd - x * (along * rstd**3 / count)
    return gx, (grad * x * rstd).sum(list(range(x.dim() - dims)))


def _added(sums: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sums, added over all ranks of the group."""
    return sums if group is None else reduced(sums, group)


def _last(dims: int) -> list[int]:
    return list(range(-dims, 0))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.custom_op("shardwright::rms_norm", mutates_args=())
def _rms_norm(
    x: Tensor, weight: Tensor | None, dims: int, count: int, eps: float
) -> tuple[Tensor, Tensor]:
    return rms_norm(x, weight, dims, count, eps)


@torch.library.custom_op("shardwright::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor, dims: int, count: int
) -> tuple[Tensor, Tensor]:
    return rms_norm_backward(grad, x, weight, rstd, dims, count)


@_rms_norm.register_fake
def _(x: Tensor, weight: Any, dims: int, count: int, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(*x.shape[: x.dim() - dims], *[1] * dims, dtype=_wide(x))


@_rms_norm_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Any, rstd: Tensor, dims: int, count: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), grad.new_empty(1) if weight is None else torch.empty_like(weight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, ctx.dims, ctx.count, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    x, weight, rstd = ctx.saved_tensors
    gx, gw = torch.ops.shardwright.rms_norm_backward(grad, x, weight, rstd, ctx.dims, ctx.count)
    return gx, None if weight is None else gw, None, None, None


_rms_norm.register_autograd(_differentiate, setup_context=_save)
