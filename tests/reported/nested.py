"""A dim that one reader takes apart otherwise than another."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TwoWays(nn.Module):
    """Six outputs are two by three for one term and three by two for the other."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y.view(-1, 2, 3).cumsum(2).sum((1, 2)) + y.view(-1, 3, 2).sin().cumsum(2).sum((1, 2))


def two_ways(batch: int = 8) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    return TwoWays(), (torch.randn(batch, 4), torch.randn(batch)), nn.functional.mse_loss


RIGHT = {"two_ways": two_ways}
