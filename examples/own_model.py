r"""A model of one's own: a function that returns the module, an example batch and the loss, and
nothing else to write.

    plan --model examples/own_model.py:build --gpus 4
    plan --model examples/own_model.py:build --gpus 4 --set hidden=4096 --batch 512
    plan --model examples/own_model.py:build --gpus 4 --mesh dp=2,tp=2 \
        --pin 'body.blocks.*=tensor' --pin 'head=replicate'
    plan --model examples/own_model.py:build --gpus 2 --hardware cpu --batch 256 --out plans/own
    plan run plans/own --steps 3 --verify

The arguments of `build` are the options of `--set`, `--batch` and `--seq`; patterns of `--pin` are
the names of modules.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["Regressor", "build", "robust_loss"]


class Block(nn.Module):
    """x + down(gelu(up(norm(x))))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Body(nn.Module):
    def __init__(self, width: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Regressor(nn.Module):
    """(batch, outputs) for (batch, inputs)."""

    def __init__(self, *, inputs: int, width: int, hidden: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.body = Body(width, hidden, depth)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(self.stem(x)))
        return y


def robust_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """The mean of sqrt(1 + error^2) - 1: squared for small errors, absolute for large ones."""
    return ((1 + (predicted - target) ** 2).sqrt() - 1).mean()


def build(
    batch: int = 2048,
    inputs: int = 128,
    width: int = 512,
    hidden: int = 2048,
    depth: int = 4,
    outputs: int = 16,
) -> tuple[nn.Module, tuple[Tensor, Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """The model, a batch (inputs, then target) and the loss. The planner calls this on fake
    tensors: it takes no memory."""
    module = Regressor(inputs=inputs, width=width, hidden=hidden, depth=depth, outputs=outputs)
    return module, (torch.randn(batch, inputs), torch.randn(batch, outputs)), robust_loss
