"""Nested batches: tensors in dicts, tuples and lists, as a flat tuple of tensors and a *nest* with
the place of each.

batch -> tensors, nest -> the module's arguments and the loss's target. Dicts are read in the order
of their keys' names, so the order in which a batch's keys were written does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Slot", "arguments", "fill", "flatten"]


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of tensor number `index` in a nest."""

    index: int

    def __repr__(self) -> str:
        return f"tensor {self.index}"


def flatten(batch: Any) -> tuple[tuple[Tensor, ...], Any]:
    """The tensors of a nested batch, and its nest: the same containers with a `Slot` in place of
    every tensor; other values stay."""
    tensors: list[Tensor] = []
    nest = _strip(batch, tensors)
    return tuple(tensors), nest


def fill(nest: Any, tensors: Sequence[Tensor]) -> Any:
    """The batch that a nest describes, with these tensors: the inverse of `flatten`."""
    if isinstance(nest, Slot):
        return tensors[nest.index]
    if isinstance(nest, dict):
        return {key: fill(value, tensors) for key, value in nest.items()}
    if isinstance(nest, tuple | list):
        return _like(nest, [fill(value, tensors) for value in nest])
    return nest


def arguments(nest: Any, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """The module's arguments, by position and by name, and the loss's target.

    A dict is passed whole: `module(**batch)`, and to the loss too. The last item of a tuple is the
    target and the others are the inputs; if the last input is a dict, it has arguments by name.
    """
    batch = fill(nest, tensors)
    if isinstance(batch, dict):
        return (), batch, batch
    *inputs, target = batch
    named = inputs.pop() if inputs and isinstance(inputs[-1], dict) else {}
    return tuple(inputs), named, target


def _strip(tree: Any, tensors: list[Tensor]) -> Any:
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return Slot(len(tensors) - 1)
    if isinstance(tree, Mapping):
        return {key: _strip(tree[key], tensors) for key in sorted(tree, key=str)}
    if isinstance(tree, tuple | list):
        return _like(tree, [_strip(value, tensors) for value in tree])
    return tree


def _like(container: Any, values: list[Any]) -> Any:
    """The values in a container of the same kind."""
    return type(container)(*values) if hasattr(container, "_fields") else type(container)(values)
