"""`shardwright::constant`: a tensor made of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["constant"]


def constant(
    values: Sequence[float],
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> Tensor:
    """The numbers, row by row, as a tensor on `device` (None: torch's default device)."""
    return torch.tensor(list(values), dtype=dtype, device=device).reshape(tuple(shape))
