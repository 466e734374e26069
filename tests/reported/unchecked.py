"""Models that call functions of torch's which look at values first, complex products, and dims
that change their size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence


class Policy(nn.Module):
    """An action by its logits, a value by its mean and deviation, and features that are to be
    unlike one another."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.logits, self.value = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Categorical, Normal, Tensor]:
        h = torch.tanh(self.body(x))
        mean, deviation = self.value(h).chunk(2, -1)
        return Categorical(logits=self.logits(h)), Normal(mean, F.softplus(deviation) + 0.1), h


def _policy_loss(out: tuple[Categorical, Normal, Tensor], target: Tensor) -> Tensor:
    action, value, h = out
    likely = action.log_prob(target[:, 0].long()).mean() + 0.1 * action.entropy().mean()
    prior = kl_divergence(value, Normal(0.0, 1.0)).mean()
    alike = torch.corrcoef(h.T).square().mean() + torch.cov(h.T, correction=0).diagonal().mean()
    return (
        F.gaussian_nll_loss(value.loc, target[:, 1:], value.scale**2, eps=0.5)
        + prior
        + alike
        - likely
    )


def policy(batch: int = 8) -> tuple[nn.Module, tuple[Any, ...], object]:
    target = torch.stack((torch.arange(batch) % 4, torch.randn(batch)), 1)
    return Policy(), (torch.randn(batch, 6), target), _policy_loss


class Spectral(nn.Module):
    """Mixes channels by complex weights at each low frequency, then folds space into channels."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Parameter(torch.randn(3, 4, 4, 2)), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        f = torch.fft.rfft(x.flatten(2))[..., :3]
        f = torch.einsum("bif,fio->bof", f, torch.view_as_complex(self.mix))
        x = torch.fft.irfft(F.pad(f, (0, 2)), n=8).view(x.shape)
        out: Tensor = self.head(F.pixel_unshuffle(x, 2).square().mean((2, 3)))
        return out


def spectral(batch: int = 8) -> tuple[nn.Module, tuple[Any, ...], object]:
    return Spectral(), (torch.randn(batch, 4, 2, 4), torch.randint(0, 3, (batch,))), F.cross_entropy


def _weighted(out: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(
        out, target, weight=1 / (1 + torch.bincount(target, minlength=3)).to(out.dtype)
    )


def counted(batch: int = 8) -> tuple[nn.Module, tuple[Any, ...], object]:
    return nn.Linear(6, 3), (torch.randn(batch, 6), torch.randint(0, 3, (batch,))), _weighted


RIGHT = {"policy": policy, "spectral": spectral}
REFUSED = {"counted": (counted, r"use F\.one_hot\(x, n\)\.sum\(0\).*unchecked\.py:\d+")}
