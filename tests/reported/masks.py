"""Models that write more than a number under a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parts = tuple[nn.Module, tuple[Tensor, ...], object]


class Replaced(nn.Module):
    """A learned row stands for what is missing, by a mask of the batch; every other position is
    marked, by one that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 4), nn.Linear(4, 3)
        self.missing, self.mark = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor, missing: Tensor) -> Tensor:
        h = self.first(x)
        h[missing] = self.missing
        even = torch.arange(x.shape[1]) % 2 == 0
        h[:, even] = h[:, even] * 2 + self.mark
        h = torch.index_put(h.transpose(0, 1), (even,), self.missing.exp()).tanh() + h.transpose(
            0, 1
        )
        out: Tensor = self.head(h.mean(0))
        return out


def replaced(batch: int = 8) -> Parts:
    x, missing = torch.randn(batch, 5, 6), torch.rand(batch, 5) < 0.4
    return Replaced(), (x, missing, torch.randint(0, 3, (batch,))), F.cross_entropy


class Scattered(nn.Module):
    """Writes a row for each place of a mask that is data."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)

    def forward(self, x: Tensor, chosen: Tensor, rows: Tensor) -> Tensor:
        h = self.first(x)
        h[chosen] = rows[:3]
        return h


def scattered(batch: int = 8) -> Parts:
    chosen = torch.arange(batch) < 3
    return (
        Scattered(),
        (torch.randn(batch, 6), chosen, torch.randn(batch, 4), torch.randint(0, 4, (batch,))),
        F.cross_entropy,
    )


RIGHT = {"replaced": replaced}
REFUSED = {
    "scattered": (
        scattered,
        r"a tensor of several numbers is written under a mask.*masks\.py:\d+ \(h\[chosen\] = rows",
    )
}
