"""Tensors that lie in memory otherwise than one device's eager run has them; and ops that say of
themselves less than others."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parts = tuple[nn.Module, tuple[Tensor, ...], Any]


class ConvNeXt(nn.Module):
    """Channels by a linear layer on a permuted image, group norm before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.last = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.GroupNorm(2, 8),
            nn.GroupNorm(4, 8),
        )
        self.up, self.down, self.head = nn.Linear(8, 32), nn.Linear(32, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(torch.tanh(self.up(self.norm(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2) + x
        out: Tensor = self.head(y + F.silu(self.last(y)))
        return out


def convnext(batch: int = 4) -> Parts:
    return ConvNeXt(), (torch.randn(batch, 3, 6, 6), torch.randn(batch, 3, 6, 6)), F.mse_loss


class Volume(nn.Module):
    """Maximum pooling with indices of three dims, and a batch norm whose weight is every other
    entry of a larger parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale, self.head = (
            nn.Conv3d(2, 4, 3),
            nn.Parameter(torch.rand(8)),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(self.conv(x), None, None, self.scale[::2], self.scale[1::2], training=True)
        out: Tensor = self.head(F.adaptive_max_pool3d(y.transpose(-1, -2), 2).flatten(2).mean(2))
        return out


def volume(batch: int = 4) -> Parts:
    return Volume(), (torch.randn(batch, 2, 6, 6, 5), torch.randn(batch, 3)), F.mse_loss


class Volumes(nn.Module):
    """Determinants of matrices that are transposed views."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.head = nn.Linear(5, 9), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        m = self.matrix(x).view(-1, 3, 3).mT
        m = m + 4 * torch.eye(3, dtype=m.dtype)
        right = torch.ones(3, 1, dtype=m.dtype)
        found = torch.stack(
            [
                torch.linalg.det(m) / 64,
                torch.linalg.slogdet(m)[1],
                torch.linalg.solve(m, right).sum((1, 2)),
            ],
            1,
        )
        out: Tensor = self.head(found)
        return out


def determinants(batch: int = 4) -> Parts:
    return Volumes(), (torch.randn(batch, 5), torch.randn(batch, 1)), F.mse_loss


class Cells(nn.Module):
    """An LSTM cell and a GRU cell, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.head = nn.LSTMCell(4, 6), nn.GRUCell(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        state, y = None, None
        for step in x.unbind(1):
            state = self.lstm(step, state)
            y = self.gru(state[0], y)
        out: Tensor = self.head(y)
        return out


def cells(batch: int = 6) -> Parts:
    return Cells(), (torch.randn(batch, 3, 4), torch.randint(0, 2, (batch,))), F.cross_entropy


class Scalars(nn.Module):
    """Ops of tensors that have no dims."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.gate = nn.Linear(4, 2), nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate.transpose(0, -1)
        scale = (
            F.softmax(gate, 0)
            + F.log_softmax(gate, 0)
            + gate.cumsum(0)
            + gate.max(0).values
            + gate.t().flip(())
        )
        out: Tensor = self.inner(x) * scale
        return out


def scalars(batch: int = 6) -> Parts:
    return Scalars(), (torch.randn(batch, 4), torch.randn(batch, 2)), F.mse_loss


class Spectral(nn.Module):
    """Weights on the frequencies of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 6), nn.Linear(6, 3)
        self.real, self.imaginary = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.up(x), dim=1) * torch.complex(self.real, self.imaginary)
        out: Tensor = self.down(torch.fft.irfft(spectrum, n=8, dim=1))
        return out


def spectral(batch: int = 4) -> Parts:
    return Spectral(), (torch.randn(batch, 8, 3), torch.randn(batch, 8, 3)), F.mse_loss


class Rows(nn.Module):
    """A table whose gradient is sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(10, 4, mode="sum", sparse=True), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.table(ids))
        return out


def rows(batch: int = 6) -> Parts:
    return (
        Rows(),
        (torch.randint(0, 10, (batch, 4)), torch.randint(0, 3, (batch,))),
        F.cross_entropy,
    )


class Named(nn.Module):
    """Dims by name."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).refine_names("batch", "feature").rename(None)  # type: ignore[no-any-return]


def named(batch: int = 6) -> Parts:
    return Named(), (torch.randn(batch, 4), torch.randn(batch, 3)), F.mse_loss


REFUSED = {
    "rows": (rows, "sparse"),
    "named": (named, "refine_names.*named dims are not supported"),
}
RIGHT = {
    "convnext": convnext,
    "volume": volume,
    "determinants": determinants,
    "cells": cells,
    "spectral": spectral,
    "scalars": scalars,
}
