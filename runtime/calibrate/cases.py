"""The calls that calibration measures, except products: which ops, at which shapes. Those of
layers are in `layers`.

Shapes span those of small training steps, from a launch to memory's bandwidth, with the skinny
products of recurrent layers and output heads. What an op needs from its forward (a convolution's
input, a pool's indices) is made by running that forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from planner.program.operators import callable_of
from runtime.calibrate.case import Arguments, Case, ids, on_a_gpu, random, several
from runtime.calibrate.chains import chains
from runtime.calibrate.layers import attentions, convolutions, embeddings, lstms

__all__ = ["cases"]


def cases(device: torch.device, *, quick: bool = False) -> list[Case]:
    """All calls except products. `quick` keeps the smallest of each family,
    and none that must be compiled."""
    families = (
        _pointwise,
        _reductions,
        _norms,
        _losses,
        embeddings,
        convolutions,
        attentions,
        lstms,
        _copies,
        *(() if quick else (chains,)),
    )
    out: list[Case] = []
    for family in families:
        found = list(family(device))  # smallest first
        out += found[:2] if quick else found
    return out


def _pointwise(device: torch.device) -> Iterator[Case]:
    tanh = (("approximate", "tanh"),)
    for n in (
        1 << 8,
        1 << 13,
        1 << 16,
        1 << 18,
        1 << 20,
        1 << 22,
        *on_a_gpu(device, 1 << 24, 1 << 26),
    ):
        one, two = partial(several, device, 1, n), partial(several, device, 2, n)
        shared = n in (1 << 16, 1 << 20)
        yield Case("aten.add.Tensor", two, shared=shared)
        yield Case("aten.mul.Tensor", two)
        yield Case("aten.sub.Tensor", two)
        yield Case("aten.relu.default", one, shared=shared)
        yield Case("aten.threshold_backward.default", partial(_threshold, device, n))
        yield Case("aten.gelu.default", one, tanh, shared=shared)
        yield Case("aten.gelu_backward.default", two, tanh)


def _threshold(device: torch.device, n: int) -> Arguments:
    return *several(device, 2, n), 0


def _reductions(device: torch.device) -> Iterator[Case]:
    for shape in (
        (256, 64),
        (1024, 256),
        (256, 4096),
        (1024, 1024),
        (16384, 64),
        *on_a_gpu(device, (8192, 4096), (16384, 8192)),
    ):
        yield Case(
            "aten.sum.dim_IntList",
            partial(_column_sum, device, shape),
            shared=shape == (1024, 1024),
        )
        yield Case("aten.sum.default", partial(several, device, 1, *shape))
    for images in (
        (4, 32, 16, 16),
        (32, 32, 32, 32),
        (64, 64, 16, 16),
        *on_a_gpu(device, (64, 64, 112, 112)),
    ):
        shared = images == (32, 32, 32, 32)
        yield Case(
            "aten.max_pool2d_with_indices.default", partial(_pool, device, images), shared=shared
        )
        yield Case(
            "aten.max_pool2d_with_indices_backward.default",
            partial(_pool_backward, device, images),
            shared=shared,
        )


def _column_sum(device: torch.device, shape: tuple[int, ...]) -> Arguments:
    """The gradient of a bias."""
    return random(device, *shape), (0,), True


def _pool(device: torch.device, shape: tuple[int, ...]) -> Arguments:
    return random(device, *shape), (2, 2)


def _pool_backward(device: torch.device, shape: tuple[int, ...]) -> Arguments:
    x = random(device, *shape)
    out, indices = torch.ops.aten.max_pool2d_with_indices(x, [2, 2])
    return torch.randn_like(out), x, (2, 2), (), (0, 0), (1, 1), False, indices


def _norms(device: torch.device) -> Iterator[Case]:
    for rows, width in (
        (64, 64),
        (256, 256),
        (1024, 256),
        (1024, 1024),
        *on_a_gpu(device, (8192, 768), (16384, 4096)),
    ):
        yield Case(
            "aten.native_layer_norm.default",
            partial(_norm, device, rows, width),
            shared=rows == 1024,
        )
        yield Case(
            "aten.native_layer_norm_backward.default",
            partial(_norm_backward, device, rows, width),
            shared=rows == 1024,
        )


def _norm(device: torch.device, rows: int, width: int) -> Arguments:
    return random(device, rows, width), (width,), *several(device, 2, width), 1e-5


def _norm_backward(device: torch.device, rows: int, width: int) -> Arguments:
    x, shape, weight, bias, _ = _norm(device, rows, width)
    _, mean, rstd = torch.ops.aten.native_layer_norm(x, shape, weight, bias, 1e-5)
    return torch.randn_like(x), x, shape, mean, rstd, weight, bias, (True, True, True)


def _losses(device: torch.device) -> Iterator[Case]:
    for rows, classes in (
        (64, 10),
        (128, 1024),
        (256, 8192),
        (1024, 8192),
        *on_a_gpu(device, (8192, 32_768)),
    ):
        yield Case(
            "shardwright.cross_entropy", partial(_loss, device, rows, classes), shared=rows == 256
        )
        yield Case(
            "shardwright.cross_entropy_backward",
            partial(_loss_backward, device, rows, classes),
            shared=rows == 256,
        )


def _loss(device: torch.device, rows: int, classes: int) -> Arguments:
    return random(device, rows, classes), ids(device, classes, rows), -100


def _loss_backward(device: torch.device, rows: int, classes: int) -> Arguments:
    logits, target, ignored = _loss(device, rows, classes)
    _, lse = callable_of("shardwright.cross_entropy")(logits, target, ignored)
    return torch.ones((), device=device), logits, target, lse, ignored


def _copies(device: torch.device) -> Iterator[Case]:
    for rows, width in (
        (64, 64),
        (256, 256),
        (1024, 256),
        (4096, 256),
        *on_a_gpu(device, (32_768, 1024)),
    ):
        yield Case("aten.cat.default", partial(_join, device, rows, width), shared=rows == 1024)
        yield Case("aten.select_backward.default", partial(_last_of, device, rows, width))


def _join(device: torch.device, rows: int, width: int) -> Arguments:
    return several(device, 3, rows, width), 1


def _last_of(device: torch.device, rows: int, width: int) -> Arguments:
    return random(device, rows, width), (rows, 16, width), 1, -1
