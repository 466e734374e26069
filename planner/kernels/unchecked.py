"""Functions of torch's that check values before they compute, here without the check: fake tensors
have no values.

An input that the check would refuse (a negative variance) gives a loss of NaN, which a run shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cost_models.errors import NotTraceable

__all__ = ["UNCHECKED"]


def _gaussian_nll(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """`F.gaussian_nll_loss`: 0.5 (log var + (input - target)^2 / var), with var clamped to at least
    `eps`, and gradients as if it were not clamped."""
    if not isinstance(var, Tensor):
        return F.gaussian_nll_loss(input, target, var, full=full, eps=eps, reduction=reduction)
    if var.shape != input.shape:
        if input.shape[:-1] == var.shape:
            var = var.unsqueeze(-1)
        elif (
            input.dim() != var.dim()
            or sum(b for a, b in zip(input.shape, var.shape, strict=True) if a != b) != 1
        ):
            raise NotTraceable(
                f"F.gaussian_nll_loss has a variance of {tuple(var.shape)} for a mean of "
                f"{tuple(input.shape)}: give one of the same shape"
            )
    var = var.clone()
    with torch.no_grad():
        var.copy_(torch.where(var < 0, math.nan, var.clamp(min=eps)))
    loss = 0.5 * (torch.log(var) + (input - target) ** 2 / var)
    loss = loss + 0.5 * math.log(2 * math.pi) if full else loss
    if reduction not in ("none", "mean", "sum"):
        raise NotTraceable(
            f"F.gaussian_nll_loss has reduction {reduction!r}: use 'none', 'mean' or 'sum'"
        )
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def _cov(
    x: Tensor,
    *,
    correction: int = 1,
    fweights: Tensor | None = None,
    aweights: Tensor | None = None,
) -> Tensor:
    """`torch.cov`: products of the rows' deviations from their means, divided by the number of
    observations less `correction`."""
    if fweights is not None or aweights is not None:
        raise NotTraceable(
            "torch.cov reads the values of its weights: weight and centre the rows with tensor ops"
        )
    x = x.reshape(1, -1) if x.dim() < 2 else x
    x = x - x.sum(1, keepdim=True) / x.shape[1]
    return (torch.mm(x, x.t().conj()) / max(x.shape[1] - correction, 0)).squeeze()


def _corrcoef(x: Tensor) -> Tensor:
    """`torch.corrcoef`: covariances divided by the roots of the variances of row and column, and
    clipped to [-1, 1]."""
    c = _cov(x)
    if c.dim() == 0:
        return c / c
    d = c.diagonal()
    deviation = torch.sqrt(d.real if c.is_complex() else d)
    c = c / deviation[:, None] / deviation[None, :]
    return (
        torch.complex(c.real.clamp(-1, 1), c.imag.clamp(-1, 1))
        if c.is_complex()
        else c.clamp(-1, 1)
    )


UNCHECKED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.gaussian_nll_loss: _gaussian_nll,
    torch.cov: _cov,
    Tensor.cov: _cov,
    torch.corrcoef: _corrcoef,
    Tensor.corrcoef: _corrcoef,
}
