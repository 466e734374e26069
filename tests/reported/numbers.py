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


def _parts(module: nn.Module, batch: int) -> Parts:
    return module, (torch.randn(batch, 6), torch.randint(0, 4, (batch,))), F.cross_entropy


def warm_up(batch: int = 8) -> Parts:
    return _parts(WarmUp(), batch)


def gain(batch: int = 8) -> Parts:
    return _parts(Gain(), batch)


RIGHT: dict[str, object] = {}
REFUSED = {
    "warm_up": (warm_up, r"numbers\.py:\d+ \(scale = 1 / int.*the value of a tensor is needed"),
    "gain": (gain, r"numbers\.py:\d+ \(.*self\.gain\.item.*the value of a tensor is needed"),
}
