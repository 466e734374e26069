"""`vit`: an image classifier of ViT's shape. Patches by a strided convolution, a class token,
learned positions, pre-norm blocks.

Source: Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", section 3.1 and table 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.models.spec import ModelSpec, Options, Parts, Preset, check_divides

__all__ = ["SPEC", "ViT"]

_INIT_STD = 0.02


class Attention(nn.Module):
    """Self-attention of all patches; the rows of `qkv.weight` are (3, heads, head_dim)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, width = x.shape
        q, k, v = (
            self.qkv(x)
            .view(batch, seq, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, seq, width))
        return out


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm_2 = nn.LayerNorm(width)
        self.fc = nn.Linear(width, mlp)
        self.proj = nn.Linear(mlp, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        out: Tensor = x + self.proj(F.gelu(self.fc(self.norm_2(x))))
        return out


class ViT(nn.Module):
    """Logits (batch, classes) for images (batch, 3, image, image)."""

    def __init__(
        self, *, layers: int, width: int, heads: int, mlp: int, image: int, patch: int, classes: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(_INIT_STD * torch.randn(1, (image // patch) ** 2 + 1, width))
        self.layers = nn.ModuleList(Block(width, heads, mlp) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], 1, x.shape[2]), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def _check(options: Options) -> None:
    check_divides(options, "width", "heads")
    check_divides(options, "image", "patch")


def _build(options: Options) -> Parts:
    names = ("layers", "width", "heads", "mlp", "image", "patch", "classes")
    module = ViT(**{key: options[key] for key in names})
    images = torch.randn(options["batch"], 3, options["image"], options["image"])
    return (
        module,
        (images, torch.randint(0, options["classes"], (options["batch"],))),
        F.cross_entropy,
    )


def _preset(layers: int, width: int, heads: int, patch: int, parameters: str) -> Preset:
    return Preset(
        description=f"{layers} layers, {width} wide, {heads} heads, patches of {patch}: {parameters} "
        "million parameters",
        options={
            "layers": layers,
            "width": width,
            "heads": heads,
            "mlp": 4 * width,
            "image": 224,
            "patch": patch,
            "classes": 1000,
        },
        batch_per_device=32,
        source="Dosovitskiy et al. 2020, table 1",
    )


SPEC = ModelSpec(
    name="vit",
    description="vision transformer: patches, class token, pre-norm encoder; cross-entropy",
    options={
        "layers": 4,
        "width": 192,
        "heads": 3,
        "mlp": 768,
        "image": 64,
        "patch": 8,
        "classes": 10,
    },
    batch_per_device=32,
    build=_build,
    dim_names={
        "patches.weight": ("embed", "channels", "patch_h", "patch_w"),
        "token": ("one", "one", "embed"),
        "positions": ("one", "positions", "embed"),
        "layers.*.attn.qkv.*": ("three,heads,head_dim", "embed"),
        "layers.*.attn.proj.weight": ("embed", "heads,head_dim"),
        "layers.*.fc.*": ("mlp", "embed"),
        "layers.*.proj.weight": ("embed", "mlp"),
        "head.*": ("classes", "embed"),
        "*": ("embed",),
    },
    presets={
        "vit-base-16": _preset(12, 768, 12, 16, "86"),
        "vit-large-16": _preset(24, 1024, 16, 16, "304"),
        "vit-huge-14": _preset(32, 1280, 16, 14, "632"),
    },
    check=_check,
)
