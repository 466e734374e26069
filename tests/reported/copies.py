"""Models built by copying layers, and layers that share a table without registering it twice."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parts = tuple[nn.Module, tuple[Tensor, ...], object]


class Clones(nn.Module):
    """Blocks copied from one, as many an encoder makes them, and a head tied to the table after
    the copy."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 8)
        block = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
        block[0].bias.requires_grad_(False)
        block.register_buffer("shift", torch.arange(8.0) / 8)
        self.blocks = nn.ModuleList(copy.deepcopy(block) for _ in range(3))
        self.head = copy.copy(block[0])
        self.head.weight = nn.Parameter(torch.randn(12, 8) / 8)
        self.head.bias = None
        self.out = copy.deepcopy(self.head)
        self.out.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids).mean(1)
        for block in self.blocks:
            x = x + torch.tanh(block(x) + block.get_buffer("shift"))
        return self.out(x) + self.head(x)


def clones(batch: int = 8) -> Parts:
    return (
        Clones(),
        (torch.randint(0, 12, (batch, 5)), torch.randint(0, 12, (batch,))),
        F.cross_entropy,
    )


class Encoder(nn.Module):
    """torch's own encoder, which copies its layer, with a mask of padding."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x, src_key_padding_mask=padding)[:, 0])
        return out


def encoder(batch: int = 8) -> Parts:
    padding = torch.zeros(batch, 5, dtype=torch.bool)
    padding[1::3, 3:] = True
    return (
        Encoder(),
        (torch.randn(batch, 5, 8), padding, torch.randint(0, 4, (batch,))),
        F.cross_entropy,
    )


class Seq2Seq(nn.Module):
    """torch's whole transformer, with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Transformer(8, 2, 1, 1, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=source.dtype)
        out: Tensor = self.head(self.model(source, target, tgt_mask=mask, tgt_is_causal=True)).mean(
            1
        )
        return out


def seq2seq(batch: int = 8) -> Parts:
    return (
        Seq2Seq(),
        (torch.randn(batch, 5, 8), torch.randn(batch, 4, 8), torch.randn(batch, 4)),
        F.mse_loss,
    )


class Tied(nn.Module):
    """The table's weight in a plain list, so that it is not registered twice, and in a dict of
    settings."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(12, 8), nn.Linear(8, 8)
        self.shared = [self.table.weight]
        self.settings = {"gain": (self.mix.bias,)}

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.tanh(self.mix(self.table(ids).mean(1))) * self.settings["gain"][0]
        return x @ self.shared[0].T


def tied(batch: int = 8) -> Parts:
    return (
        Tied(),
        (torch.randint(0, 12, (batch, 5)), torch.randint(0, 12, (batch,))),
        F.cross_entropy,
    )


RIGHT = {"clones": clones, "encoder": encoder, "seq2seq": seq2seq, "tied": tied}
REFUSED: dict[str, object] = {}
