"""Gradients as the optimizer reads them, from gradients as they were reduced: in another format,
without the loss's scale, clipped; in one pass over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from planner.kernels.clip import CLIP_EPSILON

__all__ = ["ready"]


def ready(
    gradients: Sequence[Tensor],
    dtype: str,
    scale: Tensor | None = None,
    squares: Tensor | None = None,
    limit: float | None = None,
    epsilon: float = CLIP_EPSILON,
) -> Tensor | list[Tensor]:
    """The gradients over `scale` in `dtype` and, if there is a `limit`, clipped to that norm; a
    single gradient as a tensor, not a list. `squares` is the sum of the squares of all gradients
    as they are, scaled."""
    wanted = getattr(torch, dtype.removeprefix("torch."))
    factor = _factor(scale, squares, limit, epsilon)
    out = [_times(gradient, factor, wanted) for gradient in gradients]
    return out[0] if len(out) == 1 else out


def _factor(
    scale: Tensor | None, squares: Tensor | None, limit: float | None, epsilon: float
) -> Tensor | None:
    """The factor of all gradients. The inverse of the scale is rounded as in
    `torch.amp.GradScaler.unscale_`."""
    inverse = None if scale is None else scale.double().reciprocal().float()
    if limit is None:
        return inverse
    assert squares is not None
    norm = squares.sqrt() if inverse is None else squares.sqrt() * inverse
    clip = (limit / (norm + epsilon)).clamp(max=1.0)
    return clip if inverse is None else clip * inverse


def _times(gradient: Tensor, factor: Tensor | None, dtype: torch.dtype) -> Tensor:
    cast = gradient.to(dtype)
    if factor is None:
        return cast
    return cast * factor if cast is gradient else cast.mul_(factor)
