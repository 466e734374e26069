"""The optimizers that a plan may name, as torch.optim runs them on local shards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cost_models.errors import unknown_name

__all__ = ["OPTIMIZERS", "make_optimizer", "state_bytes"]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def make_optimizer(name: str, parameters: Sequence[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer, fused where torch has a fused kernel for the device."""
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, list(OPTIMIZERS))
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return OPTIMIZERS[name](list(parameters), lr=learning_rate, fused=fused)  # type: ignore[call-arg]


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """The bytes of the optimizer's own tensors."""
    tensors = (t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor))
    return sum(t.untyped_storage().nbytes() for t in tensors)
