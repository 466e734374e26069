"""`shardwright::constant`: a tensor made of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["constant"]


def constant(values: Sequence[float], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The numbers, row by row, as a tensor."""
    return torch.tensor(list(values), dtype=dtype).reshape(tuple(shape))
