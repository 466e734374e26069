"""`unet`: a segmentation network of U-Net's shape: down by pooling, up by transposed convolutions,
with joins across.

Source: Ronneberger et al. 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
figure 1; with padding, so that images keep their size, and group norm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cost_models.errors import BadValue
from planner.models.spec import ModelSpec, Options, Parts, Preset

__all__ = ["SPEC", "UNet"]

_CHANNELS_PER_GROUP = 4


class Double(nn.Module):
    """Twice a 3x3 convolution, group norm and ReLU."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, width, 3, padding=1, bias=False) for a in (before, width)
        )
        self.norms = nn.ModuleList(
            nn.GroupNorm(max(1, width // _CHANNELS_PER_GROUP), width) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return x


class UNet(nn.Module):
    """Logits (batch, classes, image, image) for images (batch, channels, image, image)."""

    def __init__(self, *, channels: int, width: int, levels: int, classes: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(
            Double(a, b) for a, b in zip([channels, *widths], widths, strict=False)
        )
        self.bottom = Double(widths[-1], 2 * widths[-1])
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths)
        )
        self.up = nn.ModuleList(Double(2 * w, w) for w in reversed(widths))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        across = []
        for double in self.down:
            across.append(double(x))
            x = F.max_pool2d(across[-1], 2)
        x = self.bottom(x)
        for grow, double in zip(self.grow, self.up, strict=True):
            x = double(torch.cat([across.pop(), grow(x)], 1))
        logits: Tensor = self.head(x)
        return logits


def _check(options: Options) -> None:
    image, halved = options["image"], 2 ** options["levels"]
    if image % halved:
        near = -(-image // halved) * halved
        raise BadValue(
            f"image {image} is not a multiple of {halved}, as {options['levels']} levels need: --set image={near}"
        )


def _build(options: Options) -> Parts:
    module = UNet(**{key: options[key] for key in ("channels", "width", "levels", "classes")})
    size = (options["image"], options["image"])
    images = torch.randn(options["batch"], options["channels"], *size)
    return (
        module,
        (images, torch.randint(0, options["classes"], (options["batch"], *size))),
        F.cross_entropy,
    )


SPEC = ModelSpec(
    name="unet",
    description="U-Net-shaped segmentation: convolutions down and up with joins across; cross-entropy of each pixel",
    options={"image": 64, "channels": 3, "width": 16, "levels": 3, "classes": 2},
    batch_per_device=16,
    build=_build,
    dim_names={
        "head.weight": ("classes", "channels", "kernel_h", "kernel_w"),
        "head.bias": ("classes",),
        "grow.*.weight": ("in_channels", "out_channels", "kernel_h", "kernel_w"),
        "*convs.*.weight": ("out_channels", "in_channels", "kernel_h", "kernel_w"),
        "*": ("channels",),
    },
    presets={
        "unet-64": Preset(
            description="4 levels from 64 channels, images of 512: 31 million parameters",
            options={"image": 512, "channels": 1, "width": 64, "levels": 4, "classes": 2},
            batch_per_device=2,
            source="Ronneberger et al. 2015, figure 1",
        )
    },
    check=_check,
)
