"""A pickle module that can also save what plain pickle cannot, for `torch.save(...,
pickle_module=pickles)`.

Functions and classes that no other process can import (lambdas, those of a notebook or of a
function) are saved by value, by cloudpickle. Parameters keep their gradient hooks, parametrized
modules their parametrizations, weak references their targets. Plain `torch.load` reads the result.
"""

from __future__ import annotations

import weakref
from typing import Any

import cloudpickle
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from planner.torch_private.fake_tensors import hung_attributes
from planner.torch_private.hooks import gradient_hooks, parametrized_again

__all__ = ["Pickler", "Shallow", "parameter_with", "parametrized"]


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """The pickler that `torch.save` takes from a pickle module."""

    def reducer_override(self, thing: Any) -> Any:
        """The function and arguments that make `thing` again, if pickle does not know how."""
        if isinstance(thing, nn.Parameter) and gradient_hooks(thing):
            state = (gradient_hooks(thing), hung_attributes(thing), thing.requires_grad)
            return nn.Parameter, (thing.data,), state, None, None, parameter_with
        if isinstance(thing, nn.Module) and is_parametrized(thing):
            kind = type_before_parametrizations(thing)
            names = tuple(thing.parametrizations)  # type: ignore[arg-type]
            state_of: Any = kind.__getstate__  # the parametrized class's own method refuses
            return parametrized, (kind, names), state_of(thing)
        if type(thing) is weakref.ref and thing() is not None:
            return weakref.ref, (thing(),)
        return super().reducer_override(thing)


class Shallow(Pickler):
    """Leaves out modules and tensors, to find out whether the rest of a thing can be pickled."""

    def persistent_id(self, thing: Any) -> str | None:
        """A placeholder for a module or tensor, else None."""
        return "left out" if isinstance(thing, nn.Module | Tensor) else None


def parameter_with(parameter: Tensor, state: tuple[Any, ...]) -> None:
    """Restores the hooks and attributes of a parameter."""
    hooks, attributes, requires_grad = state
    for hook in hooks:
        parameter.register_hook(hook)  # type: ignore[no-untyped-call]
    vars(parameter).update(attributes)
    parameter.requires_grad_(requires_grad)


def parametrized(kind: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """A module of that kind, without state yet, whose tensors `names` are parametrized."""
    module = kind.__new__(kind)
    parametrized_again(module, names)
    return module
