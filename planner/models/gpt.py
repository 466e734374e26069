"""`gpt`: a decoder of GPT-2's shape. Learned positions, pre-norm blocks, fused QKV, tanh GELU, the
head tied to the embedding.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3 and
table 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cost_models.errors import BadValue
from planner.models.spec import ModelSpec, Options, Parts, Preset, check_divides, token_ids

__all__ = ["GPT", "SPEC"]

_INIT_STD = 0.02  # Radford et al. 2018, section 4.1


class Attention(nn.Module):
    """Causal self-attention; the rows of `qkv.weight` are (3, heads, head_dim)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, width = x.shape
        q, k, v = (
            part.view(batch, seq, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, seq, width))
        return out


class FeedForward(nn.Module):
    """Four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 4 * width)
        self.proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(F.gelu(self.fc(x), approximate="tanh"))
        return out


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class GPT(nn.Module):
    """Logits (batch, seq, vocab) for token ids (batch, seq)."""

    def __init__(
        self, *, layers: int, width: int, heads: int, vocab: int, positions: int, tied: bool
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab, width)
        self.wpe = nn.Embedding(positions, width)
        self.h = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocab, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight
        self._initialise(layers)

    def _initialise(self, layers: int) -> None:
        """Normal weights, zero biases; what is added to the residual stream is scaled by
        1/sqrt(number of additions)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() > 1:
                std = _INIT_STD / (2 * layers) ** 0.5 if name.endswith("proj.weight") else _INIT_STD
                nn.init.normal_(parameter, std=std)

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.wte(ids) + self.wpe(positions)
        for block in self.h:
            x = block(x)
        logits: Tensor = self.lm_head(self.ln_f(x))
        return logits


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (batch, seq, vocab) against targets (batch, seq)."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def _check(options: Options) -> None:
    check_divides(options, "width", "heads")
    if options["seq"] > options["positions"]:
        raise BadValue(
            f"seq {options['seq']} is beyond the {options['positions']} learned positions: "
            f"--set positions={options['seq']}, or --seq {options['positions']} at most"
        )


def _build(options: Options) -> Parts:
    module = GPT(
        **{key: options[key] for key in ("layers", "width", "heads", "vocab", "positions", "tied")}
    )
    ids = token_ids(options, options["batch"], options["seq"])
    targets = token_ids(options, options["batch"], options["seq"])
    return module, (ids, targets), next_token_loss


def _gpt2(layers: int, width: int, heads: int, parameters: str) -> Preset:
    return Preset(
        description=f"{layers} layers, {width} wide, {heads} heads: {parameters} parameters",
        options={"layers": layers, "width": width, "heads": heads, "vocab": 50_257, "seq": 1024},
        batch_per_device=4,
        source="Radford et al. 2019, table 2; heads from the config.json that was published with the weights",
    )


SPEC = ModelSpec(
    name="gpt",
    description="GPT-2-shaped decoder with fused QKV; cross-entropy of the next token",
    options={
        "layers": 4,
        "width": 256,
        "heads": 8,
        "vocab": 8192,
        "positions": 1024,
        "tied": True,
        "seq": 128,
    },
    batch_per_device=8,
    build=_build,
    dim_names={
        "wte.weight": ("vocab", "embed"),
        "wpe.weight": ("positions", "embed"),
        "lm_head.weight": ("vocab", "embed"),
        "h.*.attn.qkv.weight": ("three,heads,head_dim", "embed"),
        "h.*.attn.qkv.bias": ("three,heads,head_dim",),
        "h.*.attn.proj.weight": ("embed", "heads,head_dim"),
        "h.*.attn.proj.bias": ("embed",),
        "h.*.mlp.fc.weight": ("mlp", "embed"),
        "h.*.mlp.fc.bias": ("mlp",),
        "h.*.mlp.proj.weight": ("embed", "mlp"),
        "h.*.mlp.proj.bias": ("embed",),
        "h.*.ln_*": ("embed",),
        "ln_f.*": ("embed",),
    },
    presets={
        "gpt2": _gpt2(12, 768, 12, "124 million"),
        "gpt2-medium": _gpt2(24, 1024, 16, "355 million"),
        "gpt2-large": _gpt2(36, 1280, 20, "774 million"),
        "gpt2-xl": _gpt2(48, 1600, 25, "1,558 million"),
    },
    check=_check,
    sequence="seq",
)
