"""`resnet`: an image classifier of ResNet's shape, basic blocks or bottlenecks, with batch norm or
group norm.

Source: He et al. 2015, "Deep Residual Learning for Image Recognition", table 1; the stride of a
bottleneck on its 3x3 convolution, as in torchvision. Group norm of 32 channels a group at most: Wu
& He 2018, "Group Normalization", table 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cost_models.errors import BadValue
from planner.models.spec import ModelSpec, Options, Parts, Preset

__all__ = ["SPEC", "ResNet"]

_GROUPS = 32
#: Blocks in each of the four stages, and whether they are bottlenecks, by depth.
_DEPTHS = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
}


def _norm(channels: int, batch_norm: bool) -> nn.Module:
    if batch_norm:
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(
        next(g for g in range(min(_GROUPS, channels), 0, -1) if channels % g == 0), channels
    )


def _convolution(a: int, b: int, kernel: int, stride: int, batch_norm: bool) -> nn.Sequential:
    """A convolution without bias, and its norm."""
    conv = nn.Conv2d(a, b, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, _norm(b, batch_norm))


class Block(nn.Module):
    """Convolutions on the residual branch, and on the other where the shape changes."""

    def __init__(
        self, before: int, width: int, stride: int, bottleneck: bool, batch_norm: bool
    ) -> None:
        super().__init__()
        after = 4 * width if bottleneck else width
        kernels = [(before, width, 1, 1), (width, width, 3, stride), (width, after, 1, 1)]
        shapes = kernels if bottleneck else [(before, width, 3, stride), (width, width, 3, 1)]
        self.branch = nn.ModuleList(_convolution(*shape, batch_norm) for shape in shapes)
        changes = stride > 1 or before != after
        self.shortcut = (
            _convolution(before, after, 1, stride, batch_norm) if changes else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for index, layer in enumerate(self.branch):
            y = layer(F.relu(y) if index else y)
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Logits (batch, classes) for images (batch, 3, image, image)."""

    def __init__(self, *, depth: int, width: int, classes: int, batch_norm: bool) -> None:
        super().__init__()
        counts, bottleneck = _DEPTHS[depth]
        self.stem = _convolution(3, width, 7, 2, batch_norm)
        channels, blocks = width, []
        for stage, count in enumerate(counts):
            for index in range(count):
                inside = width * 2**stage
                blocks.append(
                    Block(channels, inside, 2 if stage and not index else 1, bottleneck, batch_norm)
                )
                channels = 4 * inside if bottleneck else inside
        self.blocks = nn.ModuleList(blocks)
        self.linear = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(images)), 3, stride=2, padding=1)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _check(options: Options) -> None:
    if options["depth"] not in _DEPTHS:
        raise BadValue(
            f"depth {options['depth']} is none of {', '.join(map(str, _DEPTHS))}: --set depth=18"
        )


def _build(options: Options) -> Parts:
    module = ResNet(**{key: options[key] for key in ("depth", "width", "classes", "batch_norm")})
    images = torch.randn(options["batch"], 3, options["image"], options["image"])
    return (
        module,
        (images, torch.randint(0, options["classes"], (options["batch"],))),
        F.cross_entropy,
    )


def _preset(depth: int, parameters: str) -> Preset:
    return Preset(
        description=f"{depth} layers, images of 224: {parameters} million parameters",
        options={"depth": depth, "width": 64, "image": 224, "classes": 1000},
        batch_per_device=32,
        source="He et al. 2015, table 1",
    )


SPEC = ModelSpec(
    name="resnet",
    description="ResNet-shaped image classifier (depth 10, 18, 34 or 50) with group norm or batch norm; cross-entropy",
    options={"depth": 18, "width": 16, "image": 32, "classes": 10, "batch_norm": True},
    batch_per_device=64,
    build=_build,
    dim_names={
        "linear.weight": ("classes", "channels"),
        "linear.bias": ("classes",),
        "*.0.weight": ("out_channels", "in_channels", "kernel_h", "kernel_w"),
        "*": ("channels",),
    },
    presets={"resnet-18": _preset(18, "11.7"), "resnet-50": _preset(50, "25.6")},
    check=_check,
)
