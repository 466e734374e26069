"""Ops decomposed while tracing, so that each piece can be split on its own.

A mean is a sum and a division by the global count; a bias is added after the product, where a
partial product has been reduced.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from planner.torch_private.recording import decompositions

__all__ = ["decomposition_table"]

aten = torch.ops.aten


def _mean(x: Tensor, *, dtype: torch.dtype | None = None) -> Any:
    return aten.div.Scalar(aten.sum.default(x, dtype=dtype), x.numel())


def _mean_dim(
    x: Tensor, dim: list[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Any:
    dims = dim if dim else list(range(x.dim()))
    count = 1
    for d in dims:
        count *= x.shape[d]
    return aten.div.Scalar(aten.sum.dim_IntList(x, dims, keepdim, dtype=dtype), count)


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    product = aten.mm.default(a, b)
    product = product if alpha == 1 else aten.mul.Scalar(product, alpha)
    bias = bias if beta == 1 else aten.mul.Scalar(bias, beta)
    return aten.add.Tensor(product, bias)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
    if bias is None:
        return NotImplemented
    out = aten.convolution.default(x, weight, None, *rest)
    return aten.add.Tensor(out, aten.view.default(bias, [1, -1] + [1] * (out.dim() - 2)))


def _mse_loss_backward(grad: Tensor, x: Tensor, target: Tensor, reduction: int) -> Any:
    scale = 2.0 / x.numel() if reduction == 1 else 2.0
    return aten.mul.Tensor(aten.mul.Scalar(aten.sub.Tensor(x, target), scale), grad)


def _var(
    x: Tensor,
    dim: list[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Any:
    dims = dim if dim else list(range(x.dim()))
    count = 1
    for d in dims:
        count *= x.shape[d]
    square = (x - _mean_dim(x, dims, True)) ** 2
    over = max(0.0, count - (1 if correction is None else correction))
    return aten.div.Scalar(aten.sum.dim_IntList(square, dims, keepdim), over)


def _std(
    x: Tensor,
    dim: list[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Any:
    return aten.sqrt.default(_var(x, dim, correction=correction, keepdim=keepdim))


def _checked(ids: Tensor, size: int, wrap: bool) -> Tensor:
    """The ids as row numbers from 0 on, checked: the gradient of an embedding does not check
    them."""
    found: Tensor = torch.ops.shardwright.checked_ids.default(ids, size, wrap)
    return found


def _index_put(
    x: Tensor,
    indices: list[Tensor | None],
    values: Tensor,
    accumulate: bool = False,
    *,
    wrap: bool = True,
) -> Any:
    """The gradient of `table[ids]` becomes that of an embedding, which can be split over the ids;
    `x[mask] = number` becomes a `where`."""
    ids = indices[0]
    if (
        not accumulate
        and len(indices) == 1
        and ids is not None
        and ids.dtype == torch.bool
        and values.numel() == 1
    ):
        mask = ids.view(*ids.shape, *(1 for _ in range(x.dim() - ids.dim())))
        return aten.where.self(mask, values.to(x.dtype).reshape(()), x)
    if (
        not accumulate
        or len(indices) != 1
        or ids is None
        or ids.dtype != torch.int64
        or x.dim() == 0
    ):
        return NotImplemented
    rows = values.expand(*ids.shape, *x.shape[1:]).reshape(*ids.shape, -1)
    added = aten.embedding_dense_backward.default(
        rows, _checked(ids, x.shape[0], wrap), x.shape[0], -1, False
    )
    return aten.add.Tensor(x, added.view(x.shape))


def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Any:
    """The gradient of `index_select` along the first dim becomes that of an embedding too."""
    if dim % max(x.dim(), 1) or alpha != 1 or x.dim() == 0 or index.dim() != 1:
        return NotImplemented
    return _index_put(x, [index.long()], source, True, wrap=False)


def _copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Any:
    """The value of x after source is copied to it, with the strides of x, since views of x may be
    taken of it."""
    out = aten.expand.default(source.to(x.dtype), list(x.shape))
    if (
        out.stride() == x.stride()
        or x.numel() != sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
    ):
        return out
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    lying = aten.clone.default(
        aten.permute.default(out, order), memory_format=torch.contiguous_format
    )
    return aten.permute.default(lying, [order.index(d) for d in range(x.dim())])


def _as_strided(x: Tensor, size: list[int], stride: list[int], offset: int | None = None) -> Any:
    """A strided view becomes a plain view if its strides are the row-major ones of its shape."""
    plain = [math.prod(size[d + 1 :]) for d in range(len(size))]
    same = all(a == b or n == 1 for a, b, n in zip(stride, plain, size, strict=True))
    if offset or not same or not x.is_contiguous() or math.prod(size) != x.numel():
        return NotImplemented
    return aten.view.default(x, size)


def _copy_in_place(x: Tensor, source: Tensor, non_blocking: bool = False) -> Any:
    return (
        NotImplemented
        if x.shape == source.shape
        else aten.copy_.default(x, aten.expand.default(source, list(x.shape)))
    )


def _fill(x: Tensor, value: Tensor) -> Any:
    return _copy(x, value)


def _fill_diagonal_in_place(x: Tensor, value: float, wrap: bool = False) -> Any:
    """`fill_diagonal_` as an op that returns a new tensor, since torch has no such form of it."""
    if x.dim() != 2 or (wrap and x.shape[0] > x.shape[1]):
        return NotImplemented
    rows, columns = (aten.arange.default(n, device=x.device) for n in x.shape)
    here = aten.eq.Tensor(aten.unsqueeze.default(rows, 1), columns)
    return aten.copy_.default(x, aten.masked_fill.Scalar(x, here, value))


def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
    """A softmax that is 0 if every entry is -inf."""
    x = x if dtype is None else x.to(dtype)
    masked = aten.all.dim(aten.eq.Scalar(x, float("-inf")), dim, True)
    return aten.where.self(
        masked, aten.scalar_tensor.default(0.0, dtype=x.dtype), aten._softmax.default(x, dim, False)
    )


def _new_empty_strided(x: Tensor, size: list[int], stride: list[int], **kwargs: Any) -> Any:
    return aten.full.default(size, 0, dtype=kwargs.get("dtype") or x.dtype)


def decomposition_table() -> dict[Any, Any]:
    """Decompositions, by op, after which each piece can be split on its own: a mean becomes a sum
    and a division by the global count, and a bias is added after the product, once a partial
    product has been reduced."""
    table = decompositions(
        [
            aten.mse_loss,
            aten.binary_cross_entropy,
            aten.binary_cross_entropy_backward,
            aten.binary_cross_entropy_with_logits,
            aten.nll_loss_forward,
            aten.nll_loss_backward,
            aten.l1_loss,
            aten.smooth_l1_loss,
            aten.smooth_l1_loss_backward,
            aten.huber_loss,
            aten.huber_loss_backward,
            aten.addcmul,
            aten.addcdiv,
            aten.baddbmm,
            aten.stack,
            aten.zeros_like,
            aten.ones_like,
            aten.full_like,
            aten.new_zeros,
            aten.new_full,
            aten.rsub,
            aten.celu,
            aten.glu,
            aten.glu_backward,
            aten.log_sigmoid_forward,
            aten.log_sigmoid_backward,
            aten._prelu_kernel,
            aten._prelu_kernel_backward,
            aten.logsumexp,
            aten.linalg_vector_norm,
            aten.im2col,
            aten.col2im,
            aten._weight_norm_interface,
            aten._weight_norm_interface_backward,
        ]
    )
    ours: dict[Any, Any] = {
        aten.mean.default: _mean,
        aten.mean.dim: _mean_dim,
        aten.addmm.default: _addmm,
        aten.convolution.default: _convolution,
        aten.mse_loss_backward.default: _mse_loss_backward,
        aten.var.correction: _var,
        aten.std.correction: _std,
        aten.index_put.default: _index_put,
        aten.index_add.default: _index_add,
        aten._unsafe_index_put.default: _index_put,
        aten.as_strided.default: _as_strided,
        aten.copy.default: _copy,
        aten.copy_.default: _copy_in_place,
        aten.fill_diagonal_.default: _fill_diagonal_in_place,
        aten.fill.Tensor: _fill,
        aten._safe_softmax.default: _safe_softmax,
        aten.new_empty_strided.default: _new_empty_strided,
    }
    return table | ours
