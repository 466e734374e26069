"""Models that decide by the value of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Branching(nn.Module):
    """Takes another way for a batch whose sum is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x if x.sum() > 0 else -x)
        return out


def branching(batch: int = 8) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    return (
        Branching(),
        (torch.randn(batch, 8), torch.randint(0, 4, (batch,))),
        nn.functional.cross_entropy,
    )


RIGHT: dict[str, object] = {}
REFUSED = {
    "branching": (
        branching,
        r"values\.py:\d+ \(.*x\.sum\(\) > 0.*the step depends on the value of a tensor",
    )
}
