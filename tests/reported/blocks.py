"""Stacks of blocks that a parent runs one after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.tanh(self.up(self.norm(x))))
        return out


class Halved(nn.Module):
    """Ten blocks of which each counts half of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(10))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = 0.5 * block(x)
        out: Tensor = self.head(x)
        return out


def halved(batch: int = 8) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    return (
        Halved(),
        (torch.randn(batch, 8), torch.randint(0, 4, (batch,))),
        nn.functional.cross_entropy,
    )


RIGHT = {"halved": halved}
