"""Blocks whose activations are to be computed again in backward, of both kinds of
`torch.utils.checkpoint`: attention, and dropout in it and beside it, whose masks must be those
of the first time."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

Parts = tuple[nn.Module, tuple[Tensor, ...], object]


class Block(nn.Module):
    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.qkv, self.norm, self.up, self.down = (
            nn.Linear(8, 24),
            nn.LayerNorm(8),
            nn.Linear(8, 16),
            nn.Linear(16, 8),
        )
        self.p, self.drop = p, nn.Dropout(p)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.p)
        x = x + scale * mixed.transpose(1, 2).flatten(2)
        out: Tensor = x + self.drop(self.down(F.gelu(self.up(x))))
        return out


class Checkpointed(nn.Module):
    """An embedding, blocks one by one, a tail in segments."""

    def __init__(self, p: float = 0.0, **how: Any) -> None:
        super().__init__()
        self.table, self.head, self.how = nn.Embedding(12, 8), nn.Linear(8, 12), how
        self.blocks = nn.ModuleList(Block(p) for _ in range(3))
        self.tail = nn.Sequential(
            nn.Linear(8, 8), nn.Dropout(p), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = checkpoint(block, x, 0.5, **self.how) if self.how else block(x, 0.5)
        x = (
            checkpoint_sequential(self.tail, 2, x, use_reentrant=self.how["use_reentrant"])
            if self.how
            else self.tail(x)
        )
        out: Tensor = self.head(x.mean(1))
        return out


class Wrapped(nn.Sequential):
    """Blocks in the wrapper of `torch.distributed`."""

    def __init__(self) -> None:
        blocks = (checkpoint_wrapper(Block(0.2)) for _ in range(2))  # type: ignore[no-untyped-call]
        super().__init__(nn.Embedding(12, 8), *blocks, nn.Flatten(), nn.Linear(48, 12))


def products_kept(_: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """What selective checkpointing keeps."""
    return (
        CheckpointPolicy.MUST_SAVE
        if op is torch.ops.aten.mm.default
        else CheckpointPolicy.PREFER_RECOMPUTE
    )


def parts(module: nn.Module, batch: int) -> Parts:
    return (
        module,
        (torch.randint(0, 12, (batch, 6)), torch.randint(0, 12, (batch,))),
        F.cross_entropy,
    )


def again(batch: int = 8) -> Parts:
    return parts(Checkpointed(use_reentrant=False), batch)


def reentrant(batch: int = 8) -> Parts:
    return parts(Checkpointed(use_reentrant=True), batch)


def dropped(batch: int = 8) -> Parts:
    return parts(Checkpointed(0.2, use_reentrant=False), batch)


def dropped_reentrant(batch: int = 8) -> Parts:
    return parts(Checkpointed(0.2, use_reentrant=True), batch)


def selective(batch: int = 8) -> Parts:
    contexts = partial(create_selective_checkpoint_contexts, products_kept)
    return parts(Checkpointed(use_reentrant=False, context_fn=contexts), batch)


def wrapped(batch: int = 8) -> Parts:
    return parts(Wrapped(), batch)


def kept(batch: int = 8) -> Parts:
    """Without checkpoints."""
    return parts(Checkpointed(0.2), batch)


RIGHT = {
    "again": again,
    "reentrant": reentrant,
    "dropped": dropped,
    "dropped, reentrant": dropped_reentrant,
    "selective": selective,
    "wrapped": wrapped,
    "kept": kept,
}
