"""The optimizers of `cost_models.optimizers` as they run on local shards: torch's, and those of
Keras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cost_models.optimizers import optimizer_of
from runtime.keras_optimizers import KERAS_CLASSES

__all__ = ["make_optimizer", "state_bytes"]


def make_optimizer(
    name: str,
    parameters: Sequence[Tensor],
    learning_rate: float,
    settings: Mapping[str, Any] | None = None,
    names: Sequence[str] = (),
) -> torch.optim.Optimizer:
    """The optimizer, fused if torch has a fused kernel for the device.

    `settings` are added to those that the name implies; `names` are the parameters'. The setting
    `groups` has (names, settings) per group, `excluded` the names of parameters without weight
    decay.
    """
    known = optimizer_of(name)
    given = {**known.implied, **(settings or {})}
    if known.keras:
        excluded = given.pop("excluded", ())
        given["decayed"] = [other not in excluded for other in names] or None
        return KERAS_CLASSES[known.kind](list(parameters), lr=learning_rate, **given)
    groups = _groups(given.pop("groups", ()), parameters, names)
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    made: torch.optim.Optimizer = getattr(torch.optim, known.kind)(
        groups, lr=learning_rate, fused=fused, **given
    )
    return made


def _groups(
    groups: Sequence[tuple[Sequence[str], Mapping[str, Any]]],
    parameters: Sequence[Tensor],
    names: Sequence[str],
) -> list[Any]:
    """The parameters, in the groups that name them."""
    if not groups:
        return list(parameters)
    by_name = dict(zip(names, parameters, strict=True))
    found = [
        {**given, "params": [by_name[n] for n in members if n in by_name]}
        for members, given in groups
    ]
    grouped = {name for members, _ in groups for name in members}
    assert grouped >= set(names), set(names) - grouped
    return [group for group in found if group["params"]]


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """The bytes of the optimizer's own tensors."""
    tensors = (
        t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)
    )
    return sum(t.untyped_storage().nbytes() for t in tensors)
