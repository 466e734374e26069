"""A loss with figures that are reported beside it, and not differentiated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

__all__ = ["Reported"]


class Reported(NamedTuple):
    """A result that a loss function may return: the scalar that is trained, and scalars by name."""

    loss: Tensor
    parts: Mapping[str, Tensor]
