"""Models with what a training step may contain: dropout, batch norm and other changing buffers,
nested batches, several losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Parts = tuple[nn.Module, Any, Any]


class Dropped(nn.Module):
    """Dropout on its own, on channels, in place, between recurrent layers and inside of
    attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.lstm = nn.LSTM(8, 8, num_layers=2, dropout=0.3, batch_first=True)
        self.attn = nn.MultiheadAttention(8, 4, dropout=0.2, batch_first=True)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.drop, self.inplace = nn.Dropout(0.4), nn.Dropout(0.1, inplace=True)
        self.channels = nn.Dropout1d(0.25)
        self.head = nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.lstm(self.channels(self.embedding(ids)))
        x = x + self.attn(x, x, x, need_weights=False)[0]
        x = x + self.inplace(self.down(self.drop(F.gelu(self.up(x)))))
        q = x.unflatten(-1, (4, 2)).transpose(1, 2)
        x = x + F.scaled_dot_product_attention(q, q, q, dropout_p=0.3, is_causal=True).transpose(
            1, 2
        ).flatten(2)
        logits: Tensor = self.head(F.dropout(x, 0.2).mean(1))
        return logits


def dropped(batch: int = 8) -> Parts:
    return (
        Dropped(),
        (torch.randint(0, 16, (batch, 6)), torch.randint(0, 4, (batch,))),
        F.cross_entropy,
    )


class Normed(nn.Module):
    """Batch norms of images and vectors, with and without weights, and running means of one's
    own, one changed in place and one set. No bias stands before a norm: its gradient would be 0
    but for rounding."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.plain = nn.BatchNorm2d(8, affine=False, momentum=0.3)
        self.untracked = nn.BatchNorm2d(8, affine=False, track_running_stats=False)
        self.linear, self.last = nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 4)
        self.register_buffer("scale", torch.ones(16))
        self.register_buffer("shift", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = self.untracked(self.plain(x)).mean((2, 3)) + x.mean((2, 3))
        x = self.last(self.linear(x))
        with torch.no_grad():
            self.scale.mul_(0.9).add_(0.1 * x.abs().mean(0))
        self.shift = 0.9 * self.shift + 0.1 * x.detach().mean(0)
        logits: Tensor = self.head(x / self.scale - self.shift)
        return logits


def normed(batch: int = 8) -> Parts:
    return Normed(), (torch.randn(batch, 4, 4, 4), torch.randint(0, 4, (batch,))), F.cross_entropy


class Nested(nn.Module):
    """Arguments by name, in dicts and tuples; two heads; the input and output table are one."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = nn.Embedding(16, 8), nn.Linear(8, 8)
        self.out, self.value = nn.Linear(8, 16, bias=False), nn.Linear(8, 1)
        self.out.weight = self.table.weight

    def forward(self, ids: Tensor, *, extra: dict[str, Any], mask: Tensor) -> dict[str, Tensor]:
        left, right = extra["pair"]
        x = (
            torch.tanh(self.body(self.table(ids)) + left[:, None] * right[:, None])
            * mask[..., None]
        )
        return {"logits": self.out(x), "value": self.value(x.mean(1))[:, 0]}


def two_losses(outputs: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "words": F.cross_entropy(outputs["logits"].transpose(1, 2), target["next"]),
        "value": F.mse_loss(outputs["value"], target["value"]),
    }


def nested(batch: int = 8) -> Parts:
    extra = {"pair": (torch.randn(batch, 8), torch.randn(batch, 8)), "name": "static"}
    named = {"mask": torch.rand(batch, 4), "extra": extra}
    target = {"value": torch.randn(batch), "next": torch.randint(0, 16, (batch, 4))}
    return Nested(), (torch.randint(0, 16, (batch, 4)), named, target), two_losses


class OfDict(nn.Module):
    """A batch that is a dict, labels and all, as Hugging Face's models take it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.linear(x)
        return F.cross_entropy(logits, labels), logits


def of_dict(batch: int = 8) -> Parts:
    return (
        OfDict(),
        {"x": torch.randn(batch, 8), "labels": torch.randint(0, 4, (batch,))},
        lambda out, _: out[0],
    )


class Block(nn.Module):
    """A layer whose attention is written out, with dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.proj, self.drop = nn.Linear(width, width), nn.Dropout(0.2)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm(x)).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        seen = (self.drop(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2)
        x = x + self.drop(self.proj(seen))
        return x + self.mlp(x)


class Unfused(nn.Module):
    """A stack of such layers."""

    def __init__(self, width: int = 16, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, width)
        self.h = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, 32)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for number, block in enumerate(self.h):
            x = self.run(number, block, x)
        logits: Tensor = self.head(x).transpose(1, 2)
        return logits

    def run(self, number: int, block: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = block(x)
        return out


def unfused(batch: int = 8, **sizes: int) -> Parts:
    ids = torch.randint(0, 32, (2, batch, 8))
    return Unfused(**sizes), (ids[0], ids[1]), F.cross_entropy


class Checkpointed(Unfused):
    """The same with layers under `torch.utils.checkpoint`: every one, or every few, of the first."""

    def __init__(self, every: int = 1, first: int = 99, **sizes: int) -> None:
        super().__init__(**sizes)
        self.every, self.first = every, first

    def run(self, number: int, block: nn.Module, x: Tensor) -> Tensor:
        if number % self.every or number >= self.first:
            return super().run(number, block, x)
        out: Tensor = checkpoint(block, x, use_reentrant=False)
        return out


def checkpointed(batch: int = 8, **sizes: int) -> Parts:
    _, given, loss = unfused(batch)
    return Checkpointed(**sizes), given, loss
