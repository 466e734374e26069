"""Our own ops as formulas of torch's, for a compiler: it sees what it may fuse.

Each gives what the kernel of the same name gives on tensors that are whole, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from planner.kernels.dropout import DRAW_STEPS, drop_threshold

__all__ = ["FORMULAS", "cat", "dropout_backward", "rms_norm", "rms_norm_backward", "slice_backward"]


def rms_norm(
    x: Tensor, weight: Tensor | None, dims: int, count: int, eps: float
) -> tuple[Tensor, Tensor]:
    """x normalised over its last `dims` dims of `count` values, and 1/root [..., 1]."""
    wide = _wide(x)
    squares = (wide * wide).sum(list(range(-dims, 0)), keepdim=True)
    rstd = (squares / count + eps).rsqrt()
    out = wide * rstd
    return (out if weight is None else out * weight).to(x.dtype), rstd


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor, dims: int, count: int
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight (a single zero if there is no weight)."""
    wide_grad, wide = grad.to(rstd.dtype), x.to(rstd.dtype)
    scaled = wide_grad if weight is None else wide_grad * weight
    normed = wide * rstd
    along = (scaled * normed).sum(list(range(-dims, 0)), keepdim=True) / count
    gx = ((scaled - normed * along) * rstd).to(x.dtype)
    if weight is None:
        return gx, grad.new_zeros(1)
    return gx, (wide_grad * normed).sum(list(range(x.dim() - dims))).to(x.dtype)


def drop_by(x: Tensor, rows: Tensor, columns: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Dropout of x and its mask by the hashes of its rows and columns: every element's draw stays in
    registers."""
    draw = torch.bitwise_xor(rows.unsqueeze(-1), columns)
    for shift, factor in DRAW_STEPS:
        shifted = torch.bitwise_and(torch.bitwise_right_shift(draw, shift), (1 << (32 - shift)) - 1)
        draw = torch.bitwise_xor(draw, shifted) * factor
    mask = draw >= drop_threshold(p)
    return dropout_backward(x, mask, p), mask


def dropout_backward(grad: Tensor, mask: Tensor, p: float) -> Tensor:
    """The gradient of x: that of the result where the mask kept it, divided by 1 - p. Selecting is
    vectorised, where a product with a mask cast to numbers is not."""
    return torch.where(mask, grad * (0.0 if p >= 1 else 1 / (1 - p)), torch.zeros_like(grad))


def cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """The tensors joined along `dim`, as a sum of each padded with zeros: that takes part in a pass,
    where a join is a copy of its own, written and read again."""
    if not tensors[0].is_floating_point() or len(tensors) > _MOST_JOINED:
        return torch.cat(tensors, dim)
    dim %= tensors[0].dim()
    sizes = [tensor.shape[dim] for tensor in tensors]
    padded = [
        _padded(tensor, dim, sum(sizes[:i]), sum(sizes[i + 1 :]))
        for i, tensor in enumerate(tensors)
    ]
    out = padded[0]
    for one in padded[1:]:
        out = out + one
    return out


def slice_backward(
    grad: Tensor, sizes: list[int], dim: int, start: int, end: int, step: int
) -> Tensor:
    """The gradient of the tensor that a slice was taken of."""
    whole = sizes[dim]
    first, end = min(start, whole), min(end, whole)
    if step != 1:
        spaced: Tensor = torch.ops.aten.slice_backward(grad, sizes, dim, start, end, step)
        return spaced
    return _padded(grad, dim % grad.dim(), first, whole - end)


def _padded(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    return F.pad(x, [0, 0] * (x.dim() - 1 - dim) + [before, after])


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


#: More tensors than these are joined by a copy.
_MOST_JOINED = 4

FORMULAS: dict[str, Callable[..., Any]] = {
    "aten.cat.default": cat,
    "aten.slice_backward.default": slice_backward,
    "shardwright.drop_by": drop_by,
    "shardwright.dropout_backward": dropout_backward,
    "shardwright.reshape": torch.reshape,
    "shardwright.rms_norm": rms_norm,
    "shardwright.rms_norm_backward": rms_norm_backward,
}
