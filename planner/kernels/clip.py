"""Clipping gradients by their global norm, with shards of them on every rank: the kernels before
and after one small all-reduce."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["CLIP_EPSILON", "clipped", "square_sum"]

#: Added to the norm that gradients are divided by. Source:
#: `torch.nn.utils.clip_grad_norm_`.
CLIP_EPSILON = 1e-6


def square_sum(gradients: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The sum of the squares of all gradients, each times its share: 1 over the number of ranks
    that hold the same shard."""
    norms = [torch.linalg.vector_norm(gradient, dtype=_wide(gradient)) for gradient in gradients]
    return torch.stack(
        [norm.square() * share for norm, share in zip(norms, shares, strict=True)]
    ).sum()


def clipped(
    gradients: Sequence[Tensor], squares: Tensor, limit: float, epsilon: float = CLIP_EPSILON
) -> Tensor | list[Tensor]:
    """The gradients times min(1, limit / (norm + epsilon)); a single gradient as a tensor, not a
    list. The default epsilon is that of `torch.nn.utils.clip_grad_norm_`; Keras has none."""
    scale = (limit / (squares.sqrt() + epsilon)).clamp(max=1.0)
    out = [gradient * scale.to(gradient.dtype) for gradient in gradients]
    return out[0] if len(out) == 1 else out


def _wide(gradient: Tensor) -> torch.dtype:
    return torch.float64 if gradient.dtype == torch.float64 else torch.float32
