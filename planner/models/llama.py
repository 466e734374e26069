"""`llama`: a decoder of Llama's shape. RMSNorm, rotary positions, grouped-query attention, SwiGLU,
no biases.

Source: Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models", section 2.2;
sizes: Grattafiori et al. 2024, "The Llama 3 Herd of Models", table 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cost_models.errors import BadValue
from planner.models.gpt import next_token_loss
from planner.models.spec import ModelSpec, Options, Parts, Preset, token_ids

__all__ = ["SPEC", "Attention", "Llama", "RMSNorm", "check_heads", "rotary"]

_INIT_STD = 0.02  # `initializer_range` of the config.json published with the weights
_EPS = 1e-5  # `rms_norm_eps`, likewise


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), scaled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, _EPS)


def rotary(seq: int, head_dim: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (seq, head_dim) of the angles position x theta^(-2i/head_dim), each for
    both halves of a head."""
    frequencies = theta ** (torch.arange(0, head_dim, 2, device=like.device) / -head_dim)
    angles = torch.outer(torch.arange(seq, device=like.device).to(frequencies.dtype), frequencies)
    both = torch.cat([angles, angles], -1)
    return both.cos().to(like.dtype), both.sin().to(like.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Attention(nn.Module):
    """Causal self-attention of which `heads / kv_heads` query heads share a key and a value
    head."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, seq, width = x.shape
        q = self.q_proj(x).view(batch, seq, self.heads, self.head_dim).transpose(1, 2)
        k, v = (
            p(x).view(batch, seq, self.kv_heads, self.head_dim).transpose(1, 2)
            for p in (self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(
            _rotate(q, cos, sin),
            _rotate(k, cos, sin),
            v,
            is_causal=True,
            enable_gqa=self.heads != self.kv_heads,
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, seq, width))
        return out


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, mlp: int) -> None:
        super().__init__()
        self.input_norm = RMSNorm(width)
        self.attn = Attention(width, heads, kv_heads)
        self.post_norm = RMSNorm(width)
        self.mlp = FeedForward(width, mlp)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.input_norm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_norm(x))
        return out


class Llama(nn.Module):
    """Logits (batch, seq, vocab) for token ids (batch, seq)."""

    def __init__(
        self,
        *,
        layers: int,
        width: int,
        heads: int,
        kv_heads: int,
        mlp: int,
        vocab: int,
        rope_theta: int,
    ) -> None:
        super().__init__()
        self.head_dim, self.theta = width // heads, float(rope_theta)
        self.embed = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(Block(width, heads, kv_heads, mlp) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.lm_head = nn.Linear(width, vocab, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=_INIT_STD)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        cos, sin = rotary(ids.shape[1], self.head_dim, self.theta, x)
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


def check_heads(options: Options) -> None:
    """Raises BadValue where heads do not divide the width into even parts, or key heads not the
    heads."""
    width, heads, kv_heads = options["width"], options["heads"], options["kv_heads"]
    if width % (2 * heads):
        raise BadValue(
            f"width {width} is not a multiple of 2 x heads {heads}, as rotary positions need: change either"
        )
    if heads % kv_heads:
        near = min(
            (h for h in range(1, heads + 1) if heads % h == 0), key=lambda h: abs(h - kv_heads)
        )
        raise BadValue(
            f"heads {heads} is not a multiple of kv_heads {kv_heads}: --set kv_heads={near} divides it"
        )


def _build(options: Options) -> Parts:
    names = ("layers", "width", "heads", "kv_heads", "mlp", "vocab", "rope_theta")
    module = Llama(**{key: options[key] for key in names})
    return (
        module,
        tuple(token_ids(options, options["batch"], options["seq"]) for _ in range(2)),
        next_token_loss,
    )


def _llama3(
    layers: int, width: int, heads: int, mlp: int, parameters: str, batch_per_device: float
) -> Preset:
    """Sequences of 2,048 rather than the 8,192 of the training: without recomputation the
    activations of those fit no 80 GB."""
    return Preset(
        description=f"{layers} layers, {width} wide, {heads} heads on 8 key heads, {mlp} inside: "
        f"{parameters} parameters",
        options={
            "layers": layers,
            "width": width,
            "heads": heads,
            "kv_heads": 8,
            "mlp": mlp,
            "vocab": 128_256,
            "seq": 2048,
            "rope_theta": 500_000,
        },
        batch_per_device=batch_per_device,
        source="Grattafiori et al. 2024, table 3; the vocabulary's 128,256 rows from the config.json "
        "published with the weights; an eighth of a sample per device for 405B as in table 4 "
        "(2,048 sequences on 16,384 devices)",
    )


SPEC = ModelSpec(
    name="llama",
    description="Llama-shaped decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU; "
    "cross-entropy of the next token",
    options={
        "layers": 4,
        "width": 256,
        "heads": 8,
        "kv_heads": 4,
        "mlp": 688,
        "vocab": 8192,
        "seq": 128,
        "rope_theta": 10_000,
    },
    batch_per_device=8,
    build=_build,
    dim_names={
        "embed.weight": ("vocab", "embed"),
        "lm_head.weight": ("vocab", "embed"),
        "layers.*.attn.q_proj.weight": ("kv_heads,query_group,head_dim", "embed"),
        "layers.*.attn.[kv]_proj.weight": ("kv_heads,head_dim", "embed"),
        "layers.*.attn.o_proj.weight": ("embed", "kv_heads,query_group,head_dim"),
        "layers.*.mlp.down_proj.weight": ("embed", "mlp"),
        "layers.*.mlp.*.weight": ("mlp", "embed"),
        "*norm.weight": ("embed",),
    },
    presets={
        "llama3-8b": _llama3(32, 4096, 32, 14_336, "8.03 billion", 1),
        "llama3-70b": _llama3(80, 8192, 64, 28_672, "70.6 billion", 1 / 4),
        "llama3-405b": _llama3(126, 16_384, 128, 53_248, "405.9 billion", 1 / 8),
    },
    check=check_heads,
    sequence="seq",
)
