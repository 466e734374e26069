"""Models that read a number out of a tensor: one that the step changes must not decide."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parts = tuple[nn.Module, tuple[Tensor, ...], object]


class WarmUp(nn.Module):
    """Scales by the number of the step, which a buffer made from one number counts."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.register_buffer("seen", torch.tensor(1))

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 / int(self.seen + 1)
        self.seen += 1
        out: Tensor = self.linear(x) * scale
        return out


class Gain(nn.Module):
    """Multiplies by the number that a parameter holds, as no gradient sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gain = nn.Linear(6, 4), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) * self.gain.item() * self.gain
        return out


class Begun(nn.Module):
    """Scales what it sees by its first batch, which a buffer remembers to have seen, and never
    again."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(6, 4), nn.Parameter(torch.ones(6))
        self.register_buffer("begun", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.begun.item() == 0:
            self.scale.data = x.std(0)
            self.begun.fill_(1)
        out: Tensor = self.linear(x * self.scale)
        return out


class Sliced(nn.Module):
    """Takes its input apart at places that a buffer has, and divides by a number in another."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.register_buffer("edges", torch.tensor([0, 2, 6]))
        self.register_buffer("heat", torch.tensor(0.5))
        self.register_buffer("mask", torch.arange(6) < 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = [
            x[:, a:b] * n
            for n, (a, b) in enumerate(zip(self.edges[:-1], self.edges[1:], strict=True), start=1)
        ]
        x = torch.cat(parts, 1)
        if self.mask.any():
            x = x.masked_fill(~self.mask, 0.0)
        table = (
            torch.tensor([float(n % 7) for n in range(6000)], dtype=x.dtype)
            .reshape(1000, 6)
            .mean(0)
        )
        out: Tensor = self.linear(x + table) / float(self.heat)
        return out


def _parts(module: nn.Module, batch: int) -> Parts:
    return module, (torch.randn(batch, 6), torch.randint(0, 4, (batch,))), F.cross_entropy


def warm_up(batch: int = 8) -> Parts:
    return _parts(WarmUp(), batch)


def gain(batch: int = 8) -> Parts:
    return _parts(Gain(), batch)


def begun(batch: int = 8) -> Parts:
    return _parts(Begun(), batch)


def sliced(batch: int = 8) -> Parts:
    return _parts(Sliced(), batch)


RIGHT = {"sliced": sliced}
REFUSED = {
    "begun": (begun, r"numbers\.py:\d+ \((self\.scale\.data|if self\.begun)"),
    "warm_up": (
        warm_up,
        r"numbers\.py:\d+ \(scale = 1 / int.*the step depends on the value of a tensor",
    ),
    "gain": (
        gain,
        r"numbers\.py:\d+ \(.*self\.gain\.item.*the step depends on the value of a tensor",
    ),
}
