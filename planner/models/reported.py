"""A loss with what is reported beside it: figures of the step that nothing is differentiated by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

__all__ = ["Reported"]


class Reported(NamedTuple):
    """What a loss function may return: the scalar that is trained, and scalars by name."""

    loss: Tensor
    parts: Mapping[str, Tensor]
