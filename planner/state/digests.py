"""Digests of tensors: the same for the same bytes, and almost certainly different for others."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["digest", "digests"]


def digest(tensor: Tensor) -> int:
    """The digest of a tensor's shape, dtype and bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    head = f"{tuple(tensor.shape)} {tensor.dtype}".encode()
    return zlib.crc32(flat.view(torch.uint8).numpy().data, zlib.crc32(head))


def digests(named: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """The digests by name."""
    return {name: digest(tensor) for name, tensor in named}
