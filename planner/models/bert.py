"""`bert`: an encoder of BERT's shape, trained to fill in masked tokens. Learned positions,
post-norm blocks, a padding mask.

Source: Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers", section 3 and
appendix A.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.models.spec import (
    ModelSpec,
    Options,
    Parts,
    Preset,
    check_divides,
    padding_mask,
    token_ids,
)

__all__ = ["BERT", "SPEC"]

_INIT_STD = 0.02
_SEGMENTS = 2
_NOT_MASKED = -100  # the target of a token that was not masked, which cross-entropy ignores


class Attention(nn.Module):
    """Self-attention to the tokens that `seen` (batch, 1, 1, seq) marks; then the residual and
    its norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        batch, seq, width = x.shape
        q, k, v = (
            p(x).view(batch, seq, self.heads, -1).transpose(1, 2)
            for p in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        out: Tensor = self.norm(x + self.out(mixed.transpose(1, 2).reshape(batch, seq, width)))
        return out


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.fc = nn.Linear(width, mlp)
        self.proj = nn.Linear(mlp, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = self.attn(x, seen)
        out: Tensor = self.norm(x + self.proj(F.gelu(self.fc(x))))
        return out


class BERT(nn.Module):
    """Logits (batch, seq, vocab) for token ids, segment ids and a mask of real tokens, all
    (batch, seq)."""

    def __init__(
        self, *, layers: int, width: int, heads: int, mlp: int, vocab: int, positions: int
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(positions, width)
        self.segments = nn.Embedding(_SEGMENTS, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Block(width, heads, mlp) for _ in range(layers))
        self.transform = nn.Linear(width, width)
        self.head_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab)
        self.head.weight = self.words.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=_INIT_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor, segments: Tensor, real: Tensor) -> Tensor:
        places = self.positions(torch.arange(ids.shape[1], device=ids.device))
        x = self.norm(self.words(ids) + places + self.segments(segments))
        for layer in self.layers:
            x = layer(x, real[:, None, None, :])
        logits: Tensor = self.head(self.head_norm(F.gelu(self.transform(x))))
        return logits


def masked_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (batch, seq, vocab) over the targets that are not -100."""
    return F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=_NOT_MASKED
    )


def _check(options: Options) -> None:
    check_divides(options, "width", "heads")


def _build(options: Options) -> Parts:
    module = BERT(
        **{key: options[key] for key in ("layers", "width", "heads", "mlp", "vocab", "positions")}
    )
    shape = (options["batch"], options["seq"])
    ids, segments = token_ids(options, *shape), torch.randint(0, _SEGMENTS, shape)
    # 15 % are masked: Devlin et al., section 3.1.
    targets = torch.where(torch.rand(shape) < 0.15, token_ids(options, *shape), _NOT_MASKED)
    return module, (ids, segments, padding_mask(*shape), targets), masked_loss


def _preset(layers: int, width: int, heads: int, parameters: str) -> Preset:
    return Preset(
        description=f"{layers} layers, {width} wide, {heads} heads: {parameters} million parameters",
        options={
            "layers": layers,
            "width": width,
            "heads": heads,
            "mlp": 4 * width,
            "vocab": 30_522,
            "positions": 512,
            "seq": 512,
        },
        batch_per_device=8,
        source="Devlin et al. 2018, section 3; the vocabulary's 30,522 rows from the config.json "
        "published with the weights",
    )


SPEC = ModelSpec(
    name="bert",
    description="BERT-shaped encoder with a padding mask; cross-entropy of the masked tokens",
    options={
        "layers": 4,
        "width": 256,
        "heads": 4,
        "mlp": 1024,
        "vocab": 8192,
        "positions": 512,
        "seq": 128,
    },
    batch_per_device=16,
    build=_build,
    dim_names={
        "words.weight": ("vocab", "embed"),
        "head.bias": ("vocab",),
        "positions.weight": ("positions", "embed"),
        "segments.weight": ("segments", "embed"),
        "layers.*.attn.query.*": ("heads,head_dim", "embed"),
        "layers.*.attn.key.*": ("heads,head_dim", "embed"),
        "layers.*.attn.value.*": ("heads,head_dim", "embed"),
        "layers.*.attn.out.weight": ("embed", "heads,head_dim"),
        "layers.*.fc.*": ("mlp", "embed"),
        "layers.*.proj.weight": ("embed", "mlp"),
        "transform.weight": ("embed", "embed"),
        "*": ("embed",),
    },
    presets={"bert-base": _preset(12, 768, 12, "110"), "bert-large": _preset(24, 1024, 16, "335")},
    check=_check,
    sequence="seq",
)
