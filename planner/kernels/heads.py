"""Heads of attention: shared key heads, how heads lie in memory, and their scores."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "empty_heads_inside", "grouped", "heads_inside", "lse_dtype", "rows_together", "scores_of",
    "sum_groups",
]  # fmt: skip


def rows_together(t: Tensor) -> Tensor:
    """`t` with its last dim contiguous. Flash kernels assume that of a gradient without checking
    it."""
    return t if t.stride(-1) == 1 else t.contiguous()


def grouped(k: Tensor, q: Tensor) -> Tensor:
    """Keys or values with each head repeated for every query head that reads it."""
    groups = q.shape[1] // k.shape[1]
    return k if groups == 1 else k.repeat_interleave(groups, 1)


def sum_groups(grad: Tensor, num_kv_heads: int) -> Tensor:
    """The gradient of k or v from that of its repeated heads."""
    return (
        grad
        if grad.shape[1] == num_kv_heads
        else grad.reshape(grad.shape[0], num_kv_heads, -1, *grad.shape[2:]).sum(2)
    )


def scores_of(q: Tensor, k: Tensor, is_causal: bool, scale: float) -> Tensor:
    """scale q k^T, with -inf where a causal mask hides the key."""
    dtype = lse_dtype(q)
    scores = torch.matmul(q.to(dtype), k.to(dtype).mT) * scale
    if is_causal:
        masked = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(1)
        scores.masked_fill_(masked, float("-inf"))
    return scores


def lse_dtype(q: Tensor) -> torch.dtype:
    """The dtype in which scores are summed."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def empty_heads_inside(t: Tensor) -> Tensor:
    """An empty tensor of the shape of `t`, laid out as `heads_inside` does."""
    return t.new_empty(t.shape[0], t.shape[2], t.shape[1], t.shape[3]).transpose(1, 2)


def heads_inside(t: Tensor) -> Tensor:
    """`t` [B, H, T, D] laid out in memory as [B, T, H, D]."""
    return t.transpose(1, 2).contiguous().transpose(1, 2)
