"""`t5`: an encoder-decoder of T5's shape. RMSNorm, relative positions as a learned bias of
attention, ReLU, no biases.

Source: Raffel et al. 2019, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer", section 2.1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.models.gpt import next_token_loss
from planner.models.llama import RMSNorm
from planner.models.spec import ModelSpec, Options, Parts, Preset, padding_mask, token_ids

__all__ = ["SPEC", "T5"]

# Raffel et al. 2019, section 2.1: 32 embeddings, logarithmic up to an offset of 128.
_BUCKETS, _FURTHEST = (32, 128)


def buckets(queries: int, keys: int, both_ways: bool, device: torch.device) -> Tensor:
    """The bucket of each key's offset from each query (queries, keys): exact up to a half of
    them, logarithmic beyond."""
    offset = (
        torch.arange(keys, device=device)[None, :] - torch.arange(queries, device=device)[:, None]
    )
    count = _BUCKETS // 2 if both_ways else _BUCKETS
    start = (offset > 0).long() * count if both_ways else torch.zeros_like(offset)
    distance = offset.abs() if both_ways else (-offset).clamp(min=0)
    exact = count // 2
    far = (
        exact
        + (
            torch.log(distance.clamp(min=1) / exact) / math.log(_FURTHEST / exact) * (count - exact)
        ).long()
    )
    return start + torch.where(distance < exact, distance, far.clamp(max=count - 1))


class Attention(nn.Module):
    """Attention of x to `memory`, unscaled (the initial weights make up for it), with a bias (1
    or batch, heads, queries, keys)."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, heads * head_dim, bias=False) for _ in range(3))
        self.o = nn.Linear(heads * head_dim, width, bias=False)
        nn.init.normal_(self.q.weight, std=(width * head_dim) ** -0.5)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        batch, seq, _ = x.shape
        q = self.q(x).view(batch, seq, self.heads, -1).transpose(1, 2)
        k, v = (
            p(memory).view(batch, memory.shape[1], self.heads, -1).transpose(1, 2)
            for p in (self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        out: Tensor = self.o(mixed.transpose(1, 2).reshape(batch, seq, -1))
        return out


class FeedForward(nn.Module):
    def __init__(self, width: int, mlp: int) -> None:
        super().__init__()
        self.wi = nn.Linear(width, mlp, bias=False)
        self.wo = nn.Linear(mlp, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.wo(F.relu(self.wi(x)))
        return out


class Block(nn.Module):
    """Self-attention, in the decoder attention to the encoder's output, feed-forward; each on
    the norm of the residual stream."""

    def __init__(self, width: int, heads: int, head_dim: int, mlp: int, decoder: bool) -> None:
        super().__init__()
        self.self_norm, self.self_attn = RMSNorm(width), Attention(width, heads, head_dim)
        if decoder:
            self.cross_norm, self.cross_attn = RMSNorm(width), Attention(width, heads, head_dim)
        self.mlp_norm, self.mlp = RMSNorm(width), FeedForward(width, mlp)

    def forward(
        self, x: Tensor, bias: Tensor, memory: Tensor | None = None, seen: Tensor | None = None
    ) -> Tensor:
        normed = self.self_norm(x)
        x = x + self.self_attn(normed, normed, bias)
        if memory is not None and seen is not None:
            x = x + self.cross_attn(self.cross_norm(x), memory, seen)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class Stack(nn.Module):
    """The encoder or the decoder: its blocks, the table of relative positions that they share,
    the last norm."""

    def __init__(
        self, *, layers: int, width: int, heads: int, head_dim: int, mlp: int, decoder: bool
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.relative = nn.Embedding(_BUCKETS, heads)
        self.blocks = nn.ModuleList(
            Block(width, heads, head_dim, mlp, decoder) for _ in range(layers)
        )
        self.norm = RMSNorm(width)

    def forward(
        self,
        x: Tensor,
        real: Tensor | None,
        memory: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        seq = x.shape[1]
        bias = (
            self.relative(buckets(seq, seq, not self.decoder, x.device))
            .permute(2, 0, 1)
            .unsqueeze(0)
        )
        if self.decoder:
            hidden = torch.ones(seq, seq, dtype=torch.bool, device=x.device).triu(1)
            bias = bias.masked_fill(hidden, float("-inf"))
        elif real is not None:
            bias = bias.masked_fill(~real[:, None, None, :], float("-inf"))
        for block in self.blocks:
            x = block(x, bias, memory, seen)
        out: Tensor = self.norm(x)
        return out


class T5(nn.Module):
    """Logits (batch, target_seq, vocab) for source ids, which of them are real, and the target
    ids up to each position."""

    def __init__(
        self, *, layers: int, width: int, heads: int, head_dim: int, mlp: int, vocab: int
    ) -> None:
        super().__init__()
        self.width = width
        sizes = {"layers": layers, "width": width, "heads": heads, "head_dim": head_dim, "mlp": mlp}
        self.embed = nn.Embedding(vocab, width)
        self.encoder = Stack(**sizes, decoder=False)
        self.decoder = Stack(**sizes, decoder=True)

    def forward(self, source: Tensor, real: Tensor, target: Tensor) -> Tensor:
        memory = self.encoder(self.embed(source), real)
        x = self.decoder(self.embed(target), None, memory, real[:, None, None, :])
        return F.linear(x * self.width**-0.5, self.embed.weight)


def _build(options: Options) -> Parts:
    module = T5(
        **{key: options[key] for key in ("layers", "width", "heads", "head_dim", "mlp", "vocab")}
    )
    batch, seq, target = options["batch"], options["seq"], options["target_seq"]
    ids = (token_ids(options, batch, target) for _ in range(2))
    return module, (token_ids(options, batch, seq), padding_mask(batch, seq), *ids), next_token_loss


def _preset(layers: int, width: int, heads: int, mlp: int, parameters: str) -> Preset:
    return Preset(
        description=f"{layers} + {layers} layers, {width} wide, {heads} heads of 64: {parameters} million parameters",
        options={
            "layers": layers,
            "width": width,
            "heads": heads,
            "head_dim": 64,
            "mlp": mlp,
            "vocab": 32_128,
            "seq": 512,
            "target_seq": 114,
        },
        batch_per_device=8,
        source="Raffel et al. 2019, section 3.7 and, for 512 and 114 tokens, 3.1.4; 32,128 rows from "
        "the published config.json",
    )


SPEC = ModelSpec(
    name="t5",
    description="T5-shaped encoder-decoder with relative positions and a padding mask; cross-entropy of "
    "the next target token",
    options={
        "layers": 2,
        "width": 256,
        "heads": 4,
        "head_dim": 64,
        "mlp": 1024,
        "vocab": 8192,
        "seq": 128,
        "target_seq": 64,
    },
    batch_per_device=8,
    build=_build,
    dim_names={
        "embed.weight": ("vocab", "embed"),
        "*.relative.weight": ("buckets", "heads"),
        "*_attn.[qkv].weight": ("heads,head_dim", "embed"),
        "*_attn.o.weight": ("embed", "heads,head_dim"),
        "*.mlp.wi.weight": ("mlp", "embed"),
        "*.mlp.wo.weight": ("embed", "mlp"),
        "*norm.weight": ("embed",),
    },
    presets={
        "t5-small": _preset(6, 512, 8, 2048, "60"),
        "t5-base": _preset(12, 768, 12, 3072, "223"),
        "t5-large": _preset(24, 1024, 16, 4096, "737"),
    },
    sequence="seq",
)
