"""Losses that read a parameter for a term that no gradient comes from, or that are a parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Penalised(nn.Module):
    """A critic whose gradient by what it is given is held near length one."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, real: Tensor, made: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        between = (share * real + (1 - share) * made).requires_grad_(True)
        score = self.critic(between)
        (slope,) = torch.autograd.grad(score, between, torch.ones_like(score), create_graph=True)
        return self.critic(real), self.critic(made), (slope.norm(2, dim=1) - 1).square().mean()


def wasserstein(outputs: tuple[Tensor, Tensor, Tensor], _: Tensor) -> Tensor:
    real, made, penalty = outputs
    return made.mean() - real.mean() + 10 * penalty


def penalised(batch: int = 6) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    batch_of = (
        torch.randn(batch, 8),
        torch.randn(batch, 8),
        torch.rand(batch, 1),
        torch.zeros(batch),
    )
    return Penalised(), batch_of, wasserstein


class Weighted(nn.Module):
    """The weight of a task is learned, and a term of the loss by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)
        self.doubt = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(x), self.doubt


def weighted_terms(outputs: tuple[Tensor, Tensor], target: Tensor) -> dict[str, Tensor]:
    logits, doubt = outputs
    return {"task": nn.functional.cross_entropy(logits, target) * (-doubt).exp(), "doubt": doubt}


def weighted(batch: int = 8) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    return Weighted(), (torch.randn(batch, 8), torch.randint(0, 4, (batch,))), weighted_terms


RIGHT = {"penalised": penalised, "weighted": weighted}
