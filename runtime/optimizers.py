"""The optimizers that a plan may name, as they run on local shards: torch's, and those of Keras.

One table: what `cost_models.memory` knows the state of is what runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cost_models.errors import unknown_name
from runtime.keras_optimizers import KERAS_OPTIMIZERS

__all__ = ["OPTIMIZERS", "make_optimizer", "state_bytes"]

#: By name: the class, and what the name says of its settings.
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], Mapping[str, Any]]] = {
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (torch.optim.SGD, {}),
    "sgd-momentum": (torch.optim.SGD, {"momentum": 0.9}),
    **KERAS_OPTIMIZERS,
}


def make_optimizer(
    name: str,
    parameters: Sequence[Tensor],
    learning_rate: float,
    settings: Mapping[str, Any] | None = None,
    names: Sequence[str] = (),
) -> torch.optim.Optimizer:
    """The optimizer, fused where torch has a fused kernel for the device.

    `settings` are its own, over those that the name implies; `names` are the parameters', of which `excluded` among the settings
    names those without weight decay.
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, list(OPTIMIZERS))
    kind, implied = OPTIMIZERS[name]
    given = {**implied, **(settings or {})}
    excluded = given.pop("excluded", ())
    if name in KERAS_OPTIMIZERS:
        given["decayed"] = [other not in excluded for other in names] or None
    else:
        given["fused"] = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return kind(list(parameters), lr=learning_rate, **given)  # type: ignore[call-arg]


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """The bytes of the optimizer's own tensors."""
    tensors = (t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor))
    return sum(t.untyped_storage().nbytes() for t in tensors)
