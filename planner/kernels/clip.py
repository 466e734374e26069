"""Clipping gradients by their global norm, of which every rank has shards: the kernels around one small all-reduce."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["clipped", "square_sum"]


def square_sum(gradients: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The sum of the squares of all gradients, each times its share: 1 over the number of ranks that hold the same shard."""
    norms = [torch.linalg.vector_norm(gradient, dtype=_wide(gradient)) for gradient in gradients]
    return torch.stack([norm.square() * share for norm, share in zip(norms, shares, strict=True)]).sum()


def clipped(gradients: Sequence[Tensor], squares: Tensor, limit: float) -> Tensor | list[Tensor]:
    """The gradients times min(1, limit / (norm + 1e-6)), as `torch.nn.utils.clip_grad_norm_`; one alone as it is, no list."""
    scale = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    out = [gradient * scale.to(gradient.dtype) for gradient in gradients]
    return out[0] if len(out) == 1 else out


def _wide(gradient: Tensor) -> torch.dtype:
    return torch.float64 if gradient.dtype == torch.float64 else torch.float32
