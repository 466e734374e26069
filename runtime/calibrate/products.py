"""The products that calibration measures."""

from __future__ import annotations

import torch

from runtime.calibrate.case import Arguments, Case

__all__ = ["DEVICE_GEMM_SHAPES", "GEMM_SHAPES", "gemm_case"]


#: m, n, k of products. Tall, wide, skinny (LSTM heads, classifiers), square; forward and both
#: products of a backward.
GEMM_SHAPES = (
    (16, 16, 16),
    (64, 64, 64),
    (64, 1, 64),
    (64, 64, 1),
    (1, 64, 64),
    (64, 10, 128),
    (128, 10, 64),
    (10, 128, 64),
    (256, 64, 256),
    (64, 4096, 256),
    (256, 4096, 64),
    (64, 1024, 4096),
    (256, 256, 256),
    (1024, 256, 256),
    (1024, 768, 256),
    (256, 256, 1024),
    (1024, 1024, 256),
    (1024, 256, 1024),
    (256, 1024, 1024),
    (256, 4096, 1024),
    (256, 1024, 4096),
    (4096, 1024, 128),
    (32, 2048, 2048),
    (256, 8192, 128),
    (512, 8192, 256),
    (512, 256, 8192),
    (8192, 256, 512),
    (1024, 1024, 1024),
    (4096, 256, 64),
    (128, 2048, 4096),
    (2048, 64, 64),
    (64, 64, 2048),
)


#: Products that fill a GPU; the largest of them measure its peak: hidden layers, gates and output
#: heads of large models.
DEVICE_GEMM_SHAPES = (
    (2048, 2048, 2048),
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (8192, 768, 768),
    (8192, 3072, 768),
    (8192, 768, 3072),
    (768, 3072, 8192),
    (4096, 8192, 2048),
    (4096, 2048, 8192),
    (2048, 8192, 4096),
    (8192, 50_304, 768),
    (25_600, 256, 64),
)


def gemm_case(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, *, shared: bool = False
) -> Case:
    """A product with the strides of a backward's operands: the first row-major, the second
    transposed."""
    m, n, k = shape

    def make() -> Arguments:
        return torch.randn(m, k, dtype=dtype, device=device), torch.randn(
            n, k, dtype=dtype, device=device
        ).t()

    return Case("aten.mm.default", make, shared=shared)
