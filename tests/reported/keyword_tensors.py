"""Models that give ops tensors by keyword: those that an op takes in no other way, and those
that it takes by position too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Made = tuple[nn.Module, tuple[Tensor, ...], object]


class Binned(nn.Module):
    """Embeds the bin that a number falls into; the edges are not in order. The blocks after it
    each do so again."""

    edges: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edges", torch.tensor([0.5, -1.0, 2.0, 0.0, -2.0, 1.0, -0.5, 1.5]))
        self.table, self.inner = nn.Embedding(9, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        order = self.edges.argsort()
        bins = torch.searchsorted(self.edges, x.detach().contiguous(), sorter=order, right=True)
        return x + torch.tanh(self.inner(x)) + self.table(bins).mean(1)


class Binning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Binned() for _ in range(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


def binning(batch: int = 6) -> Made:
    return Binning(), (torch.randn(batch, 8), torch.randint(0, 5, (batch,))), F.cross_entropy


class Named(nn.Module):
    """Everything by its name."""

    low: Tensor
    high: Tensor
    weights: Tensor
    lengths: Tensor
    tolerance: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 5)
        for name, tensor in {
            "low": torch.linspace(-1, -0.5, 8),
            "high": torch.linspace(0.5, 1, 8),
            "weights": torch.rand(8),
            "bias": torch.randn(8, 8),
            "lengths": torch.tensor([3, 1, 4]),
            "tolerance": torch.tensor(1e-3),
        }.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.clamp(self.first(x), min=self.low, max=self.high)
        y = torch.addmm(input=y, mat1=y, mat2=self.bias, beta=0.5, alpha=2.0)
        counts = torch.histogram(
            y[:, 0].detach(), bins=8, range=(-2.0, 2.0), weight=self.weights
        ).hist
        sums = torch.segment_reduce(y, "mean", lengths=self.lengths, axis=0, unsafe=True)
        inverse = torch.linalg.pinv(y, atol=self.tolerance, rtol=self.tolerance)
        q = y.view(1, 1, 8, 8)
        y = y + F.scaled_dot_product_attention(query=q, key=q, value=q, attn_mask=self.bias).view(
            8, 8
        )
        out: Tensor = self.last(
            torch.diff(y, prepend=self.low[:, None]) + counts + sums.sum(0) + 0.01 * (inverse @ y)
        )
        return out


def named(batch: int = 8) -> Made:
    return Named(), (torch.randn(batch, 6), torch.randint(0, 5, (batch,))), F.cross_entropy


RIGHT = {"binning": binning, "named": named}
