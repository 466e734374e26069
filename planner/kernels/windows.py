"""Strided views of a tensor as windows that are made of its slices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["windows_of"]


def windows_of(
    x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor | None:
    """A strided view of x as overlapping windows of one dim, [..., windows, window, ...], made of
    slices instead, which can be split in the other dims; None if the view is not of that kind. The
    dim may come as (windows side by side, window)."""
    if storage_offset not in (None, x.storage_offset()) or len(size) not in (x.dim(), x.dim() + 1):
        return None
    for c in range(len(size) - 1):
        count, width, step = size[c], size[c + 1], stride[c] // max(stride[c + 1], 1)
        if not step or stride[c] % stride[c + 1] or width % step:
            continue
        long = x
        if len(size) == x.dim():
            if x.stride(c) != x.stride(c + 1) * x.shape[c + 1]:
                continue
            long = x.flatten(c, c + 1)
        others = [*range(c), *range(c + 1, long.dim())]
        same = all(
            (long.shape[d], long.stride(d)) == (size[d + (d > c)], stride[d + (d > c)])
            for d in others
        )
        if same and long.stride(c) == stride[c + 1] and (count - 1) * step + width <= long.shape[c]:
            apart = (*long.shape[:c], count, step, *long.shape[c + 1 :])
            pieces = [
                long.narrow(c, at, count * step).reshape(apart) for at in range(0, width, step)
            ]
            return torch.cat(pieces, c + 1)
    return None
