"""Blocks whose activations are to be computed again in backward, of both kinds of `torch.utils.checkpoint`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

Parts = tuple[nn.Module, tuple[Tensor, ...], object]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm, self.up, self.down = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + scale * F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        out: Tensor = x + self.down(F.gelu(self.up(x)))
        return out


class Checkpointed(nn.Module):
    """An embedding, blocks one by one, a tail in segments."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.table, self.head, self.reentrant = nn.Embedding(12, 8), nn.Linear(8, 12), reentrant
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.tail = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = checkpoint(block, x, 0.5, use_reentrant=self.reentrant)
        x = checkpoint_sequential(self.tail, 2, x, use_reentrant=self.reentrant)
        out: Tensor = self.head(x.mean(1))
        return out


def again(batch: int = 8) -> Parts:
    return Checkpointed(False), (torch.randint(0, 12, (batch, 6)), torch.randint(0, 12, (batch,))), F.cross_entropy


def reentrant(batch: int = 8) -> Parts:
    return Checkpointed(True), (torch.randint(0, 12, (batch, 6)), torch.randint(0, 12, (batch,))), F.cross_entropy


RIGHT = {"again": again, "reentrant": reentrant}
