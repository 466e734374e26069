"""Dotted paths for the layers and variables of a Keras model, for `--pin`, the report and the
trained weights.

Keras numbers layers without a given name across the whole process (`lstm`, `lstm_1`), but every
process must find the same names. So such layers are numbered here among their neighbours, in order.
A name given by the user stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["layers_of", "variable_names"]

#: Prefixes that Keras adds to the names of layers that it makes itself.
_PREFIXES = ("forward_", "backward_")


def layers_of(model: Any) -> list[tuple[str, Any]]:
    """The layers below a model with their paths, each layer before its own sublayers; a layer that
    is used in several places has the first place's path."""
    return list(_walk(model, "", {id(model)}))


def _walk(layer: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    taken: set[str] = set()
    # There is no public way to the layers of a layer.
    for child in layer._flatten_layers(include_self=False, recursive=False):
        if id(child) not in seen:
            seen.add(id(child))
            path = prefix + _free(_own_name(child), taken)
            yield path, child
            yield from _walk(child, f"{path}.", seen)


def _own_name(layer: Any) -> str:
    """A layer's name without the number that Keras gave it."""
    name, number = re.fullmatch(r"(.*?)((?:_\d+)?)", str(layer.name)).groups()  # type: ignore[union-attr]
    bare = next((name.removeprefix(p) for p in _PREFIXES if name.startswith(p)), name)
    automatic = bare.replace("_", "") == type(layer).__name__.lower()
    return _attribute(name if automatic else name + number)


def _attribute(name: str) -> str:
    """The name, changed to be valid for a module's attribute."""
    name = re.sub(r"[^0-9A-Za-z_-]", "_", name) or "layer"
    return f"{name}_" if hasattr(nn.Module, name) or name in nn.Module().__dict__ else name


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number added if it is taken."""
    number, free = 0, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free


def variable_names(model: Any) -> list[tuple[str, Any]]:
    """The variables of a model by path: those that are trained, then those that are not. States
    of random generators are left out: a plan draws from a key of its own."""
    owner: dict[int, str] = {}
    layers = layers_of(model)
    # A layer's own variables come before those of the layer that it is in.
    for path, layer in reversed(layers):
        for variable in layer.variables:
            owner.setdefault(id(variable), f"{path}.")
    taken = {path for path, _ in layers}
    return [
        (_free(owner.get(id(variable), "") + _attribute(str(variable.name)), taken), variable)
        for variable in (*model.trainable_variables, *model.non_trainable_variables)
        if variable.name != "seed_generator_state"
    ]
