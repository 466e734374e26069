"""The gradients of a step's parameters, as after `loss.backward()`.

Loss, parameters -> a gradient each, or None for a parameter that takes no part. An optimizer leaves
such a parameter alone, and so does a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from cost_models.errors import NotTraceable
from planner.torch_private.checkpoints import checkpoints_allowed
from planner.workload.workload import Workload

__all__ = ["check_sparse", "check_untouched", "gradients_of"]


def gradients_of(loss: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """The gradients by name.

    Autograd functions that run a backward pass of their own (reversible layers, reentrant
    checkpoints) leave gradients on their parameters: those are added to the ones that autograd
    returns.
    """
    with _no_gradients(list(weights.values())), checkpoints_allowed():
        returned = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        return {
            name: _sum(weight.grad, one)
            for (name, weight), one in zip(weights.items(), returned, strict=True)
        }


def check_sparse(
    tables: Sequence[Tensor], weights: Mapping[str, Tensor], workload: Workload
) -> None:
    """Raises NotTraceable if `tables` of embeddings ask for sparse gradients and the optimizer is
    not plain SGD. For plain SGD a row without a gradient is the same as one with a gradient of 0,
    so they are planned as dense."""
    moving = [f"{key}={value}" for key, value in workload.optimizer_settings.items() if value]
    if tables and (workload.optimizer != "sgd" or moving):
        names = [
            name for name, weight in weights.items() if any(weight is table for table in tables)
        ]
        optimizer = " with ".join([workload.optimizer, *([", ".join(moving)] if moving else [])])
        raise NotTraceable(
            f"model {workload.name!r}: {', '.join(names) or 'an embedding'} has sparse gradients "
            f"(sparse=True), which {optimizer} does not take or does not treat as dense ones: set "
            "sparse=False, or train with sgd"
        )


def check_untouched(
    names: Sequence[str], weights: Mapping[str, Tensor], loss: Callable[[], Tensor], model: str
) -> None:
    """Raises NotTraceable if one of the parameters `names`, which got no gradient when recorded,
    gets one from `loss().backward()`."""
    with _no_gradients(list(weights.values())):
        loss().backward()  # type: ignore[no-untyped-call]
        lost = [name for name in names if weights[name].grad is not None]
    if lost:
        raise NotTraceable(
            f"model {model!r}: parameters {', '.join(lost)} have a gradient after loss.backward() "
            "that cannot be traced: it does not come through the module's own parameters"
        )


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


@contextmanager
def _no_gradients(weights: Sequence[Tensor]) -> Iterator[None]:
    """A context in which the parameters begin without gradients; restores their old ones at the
    end."""
    before = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    try:
        yield
    finally:
        for weight, gradient in zip(weights, before, strict=True):
            weight.grad = gradient
