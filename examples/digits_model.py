"""A small image classifier for `digits.py`, in a file of its own: the ranks of a run import it
from here."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DigitNet", "loss"]


class DigitNet(nn.Module):
    """Logits (batch, 10) for images (batch, 1, 8, 8): two convolutions with batch norm, dropout,
    two linear layers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1, self.norm1 = (
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.conv2, self.norm2 = (
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
        )
        self.hidden, self.out = nn.Linear(2 * width * 4, 64), nn.Linear(64, 10)
        self.dropout = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        logits: Tensor = self.out(self.dropout(F.relu(self.hidden(x.flatten(1)))))
        return logits


def loss(logits: Tensor, label: Tensor) -> Tensor:
    """The mean cross-entropy."""
    return F.cross_entropy(logits, label)
