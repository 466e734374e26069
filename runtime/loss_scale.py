"""The scale by which a loss in float16 is multiplied, as `torch.amp.GradScaler` moves it: halved
after an overflow, doubled after many steps without one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["BACKOFF", "FIRST_SCALE", "GROWTH", "GROWTH_INTERVAL", "LossScale", "scale_event"]

#: Source: torch.amp.GradScaler, defaults of `init_scale`, `growth_factor`, `backoff_factor` and
#: `growth_interval`.
FIRST_SCALE = 2.0**16
GROWTH, BACKOFF, GROWTH_INTERVAL = 2.0, 0.5, 2000


class LossScale:
    """The scale of the next step, whether the last was skipped, and how many were so far. Every rank
    has one; they agree, since all see the same sum of squares."""

    def __init__(self, first: float = FIRST_SCALE) -> None:
        self.scale, self.skipped, self.num_skipped, self._good = first, False, 0, 0

    def tensor(self, device: torch.device) -> Tensor:
        """The scale as a step reads it."""
        return torch.tensor(self.scale, dtype=torch.float32, device=device)

    def passes(self, squares: Tensor) -> bool:
        """Whether the gradients, of this sum of squares, may be used. If not, the step is to be
        skipped, and the scale is halved."""
        self.skipped = not math.isfinite(float(squares))
        if self.skipped:
            self.scale, self._good = self.scale * BACKOFF, 0
            self.num_skipped += 1
            return False
        self._good += 1
        if self._good == GROWTH_INTERVAL:
            grown = self.scale * GROWTH
            self.scale = grown if grown <= torch.finfo(torch.float32).max else self.scale
            self._good = 0
        return True


def scale_event(scale: LossScale | None) -> dict[str, Any]:
    """What the event of a step says of the loss's scale: its value after the step, and whether the
    step was skipped. Empty if the loss is not scaled."""
    return {} if scale is None else {"loss_scale": scale.scale, "skipped": scale.skipped}
