"""`cnn`: an image classifier. (Conv 3x3 -> ReLU -> max-pool 2x2) x blocks -> global average pool
-> Linear."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cost_models.errors import BadValue
from planner.models.spec import ModelSpec, Options, Parts

__all__ = ["CNN", "SPEC"]


class Block(nn.Module):
    """Convolution, ReLU, pooling: half the height and width, `width` channels."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.conv(x)), 2)


class CNN(nn.Module):
    """Logits (batch, classes) for images (batch, channels, image, image); each block has twice
    the width of the one before."""

    def __init__(self, *, channels: int, width: int, blocks: int, classes: int) -> None:
        super().__init__()
        widths = [channels] + [width * 2**index for index in range(blocks)]
        self.blocks = nn.ModuleList(Block(a, b) for a, b in pairwise(widths))
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _check(options: Options) -> None:
    image, blocks = options["image"], options["blocks"]
    if image < 2**blocks:
        raise BadValue(
            f"image {image} is too small for {blocks} blocks that each halve it: --set "
            f"image={2**blocks} or fewer blocks"
        )


def _build(options: Options) -> Parts:
    module = CNN(**{key: options[key] for key in ("channels", "width", "blocks", "classes")})
    images = torch.randn(options["batch"], options["channels"], options["image"], options["image"])
    labels = torch.randint(0, options["classes"], (options["batch"],))
    return module, (images, labels), F.cross_entropy


SPEC = ModelSpec(
    name="cnn",
    description="image classifier: convolution, ReLU and pooling blocks, linear; cross-entropy (with "
    "residuals: resnet)",
    options={"image": 32, "channels": 3, "width": 32, "blocks": 3, "classes": 10},
    batch_per_device=64,
    build=_build,
    dim_names={
        "blocks.*.conv.weight": ("width", "channels", "kernel_h", "kernel_w"),
        "blocks.*.conv.bias": ("width",),
        "linear.weight": ("classes", "width"),
        "linear.bias": ("classes",),
    },
    check=_check,
)
