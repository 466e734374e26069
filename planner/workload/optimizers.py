"""The user's optimizer -> the fields of a `Workload`: given by name and settings, or as one of
torch's with its groups.

Groups are stored as names of parameters, so that every rank can make them from its shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from cost_models.errors import BadValue
from cost_models.optimizers import OPTIMIZERS, SETTINGS, check_settings, named
from planner.state.state import registered

__all__ = ["by_name", "check_rate", "of_torch"]

#: Settings in the groups of torch's optimizers that change no value, only how kernels run.
_HOW = (
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "decoupled_weight_decay",
    "params",
    "initial_lr",
)


def by_name(name: str, learning_rate: float, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a workload for an optimizer by its name. Raises UnknownName and BadValue."""
    check_settings(name, settings)
    check_rate("learning rate", learning_rate)
    plain = {key: tuple(value) if key == "betas" else value for key, value in settings.items()}
    return {
        "optimizer": named(name, plain),
        "learning_rate": learning_rate,
        "optimizer_settings": plain,
    }


def check_rate(what: str, rate: float) -> None:
    """Raises `BadValue` for a learning rate that is negative or not a number."""
    number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not (number and 0 <= rate < float("inf")):
        raise BadValue(f"{what} {rate!r}: give a number of at least 0")


def of_torch(
    optimizer: torch.optim.Optimizer, module: torch.nn.Module, loss: Callable[[Any, Any], Any]
) -> dict[str, Any]:
    """The fields of a workload for an optimizer of the module's own parameters, in one or several
    groups.

    Raises BadValue for a class that is not supported, an optimizer that has made steps, a learning
    rate that is a tensor, and parameters that are trained but in no group, or in a group but not
    trained.
    """
    kind = type(optimizer)
    if kind.__module__.partition(".")[0] != "torch" or kind.__name__ not in SETTINGS:
        raise BadValue(
            f"the optimizer {kind.__name__} is not supported: give one of torch's "
            f"{', '.join(SETTINGS)}"
        )
    if optimizer.state:
        raise BadValue(
            f"the {kind.__name__} has made steps already, and its state would be lost: give a "
            "new one"
        )
    base = next(
        name
        for name, known in OPTIMIZERS.items()
        if known.kind == kind.__name__ and not known.keras
    )
    groups = [_group(base, kind, group) for group in optimizer.param_groups]
    names = _names(optimizer, module, loss)
    first = groups[0]
    fields = by_name(
        named(base, *groups),
        first["lr"],
        {key: value for key, value in first.items() if key != "lr"},
    )
    if len(groups) > 1:
        fields["optimizer_settings"]["groups"] = tuple(zip(names, groups, strict=True))
    return fields


def _group(
    base: str, kind: type[torch.optim.Optimizer], group: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a group, including the learning rate."""
    taken = {
        key: value
        for key, value in group.items()
        if key not in _HOW and key not in ("param_names", "swapped")
    }
    rate = taken["lr"]
    if isinstance(rate, torch.Tensor):
        raise BadValue(f"the learning rate of {kind.__name__} is a tensor: give a number")
    check_rate("learning rate", rate)
    check_settings(base, {key: value for key, value in taken.items() if key != "lr"})
    return taken


def _names(
    optimizer: torch.optim.Optimizer, module: torch.nn.Module, loss: Callable[[Any, Any], Any]
) -> list[tuple[str, ...]]:
    """The names of the parameters of every group."""
    trained = {id(parameter): name for name, parameter in registered(module, loss)[0].items()}
    frozen = {
        id(p)
        for part in (module, loss)
        if isinstance(part, torch.nn.Module)
        for p in part.parameters()
    } - set(trained)
    names = []
    for number, group in enumerate(optimizer.param_groups):
        strange = [p for p in group["params"] if id(p) not in trained and id(p) not in frozen]
        if strange:
            shape = tuple(strange[0].shape)
            raise BadValue(
                f"group {number} of the optimizer has a parameter of shape {shape} that is "
                "neither the module's nor the loss's"
            )
        names.append(tuple(trained[id(p)] for p in group["params"] if id(p) in trained))
    left_out = [name for name in trained.values() if not any(name in group for group in names)]
    if left_out:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        raise BadValue(
            f"the optimizer has no group with {left_out[0]!r}{more}: add it, or freeze it with requires_grad_(False)"
        )
    return names
