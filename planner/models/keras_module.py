"""A compiled Keras model as a torch module: called with a batch, it returns the loss that Keras's
`fit` would differentiate.

Its variables are parameters and buffers under the paths of their layers. As in `train_step`, the
model itself does the work: its call, its `compute_loss` (compiled losses and their weights, masks,
sample weights, losses added by layers and regularizers), its metrics.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from planner.models.keras_layers import Layer, as_planned
from planner.models.keras_names import layers_of, variable_names
from planner.models.reported import Reported
from planner.torch_private.fake_tensors import is_fake
from planner.torch_private.modes import unfaked

__all__ = ["KerasModule"]


class KerasModule(Layer):
    """The Keras model as a function of its variables, which are this module's parameters and
    buffers. `class_weight` is what `fit` takes by that name."""

    def __init__(self, model: Any, class_weight: Mapping[int, float] | None = None) -> None:
        super().__init__()
        object.__setattr__(self, "keras_model", model)  # no submodule: its variables are ours
        self.class_weight = dict(class_weight or {})
        self.places: dict[int, Layer] = {}
        for path, layer in layers_of(model):
            place = Layer()
            self._parent(path).add_module(path.rpartition(".")[2], place)
            self.places[id(layer)] = place
        trained = {id(variable) for variable in model.trainable_variables}
        self.trained: list[str] = []
        self.state: list[str] = []
        for name, variable in variable_names(model):
            parent, own = self._parent(name), name.rpartition(".")[2]
            if id(variable) in trained:
                self.trained.append(name)
                parent.register_parameter(own, nn.Parameter(_value(variable)))
            else:
                self.state.append(name)
                parent.register_buffer(own, _value(variable))
        self.constants = [*_constants(model)]
        for path, layer, key in self.constants:
            self.get_submodule(path).register_buffer(
                f"{key}_held", _fake_or_cpu(getattr(layer, key))
            )

    def forward(self, inputs: Any, targets: Any = None, weights: Any = None) -> Reported:
        """The loss of a step, and each output's loss and metrics by name. Writes variables that the
        step changes to buffers."""
        import keras

        model: Any = self.keras_model
        named = variable_names(model)
        held: dict[str, Tensor] = {name: _at(self, name) for name, _ in named}
        some = next(iter(held.values()))
        with ExitStack() as stack:
            stack.enter_context(keras.device(some.device.type))
            stack.enter_context(as_planned(self.places, tracing=is_fake(some)))
            for path, layer, key in self.constants:
                stack.enter_context(patch.object(layer, key, _at(self, f"{path}.{key}_held")))
            blank = [
                (v, torch.zeros(tuple(v.shape), dtype=getattr(torch, v.dtype)))
                for v in model.metrics_variables
            ]
            mapping = [*((variable, held[name]) for name, variable in named), *blank]
            with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
                outputs = (
                    model(inputs, training=True) if model._call_has_training_arg else model(inputs)
                )
                weights = self._weighted(targets, weights)
                loss = model._compute_loss(inputs, targets, outputs, weights, training=True)
                reported = _metrics(model, inputs, targets, outputs, weights)
        with torch.no_grad():
            for name, variable in named:
                new = scope.get_current_value(variable)
                if new is not None and new is not held[name]:
                    held[name].copy_(new)
        return Reported(loss, reported)

    def _parent(self, path: str) -> nn.Module:
        return self.get_submodule(path.rpartition(".")[0])

    def _weighted(self, targets: Any, weights: Any) -> Any:
        """The samples' weights; if classes are weighted, from the classes of the targets."""
        if not self.class_weight:
            return weights
        classes = targets
        if targets.dim() > 1:
            classes = targets.squeeze(-1) if targets.shape[-1] == 1 else targets.argmax(-1)
        found = torch.ones(classes.shape, device=targets.device)
        for number, weight in self.class_weight.items():
            found = torch.where(
                classes.round() == number if classes.is_floating_point() else classes == number,
                weight,
                found,
            )
        return found


def _metrics(
    model: Any, inputs: Any, targets: Any, outputs: Any, weights: Any
) -> dict[str, Tensor]:
    """Each loss by its output's name, if there are several, and each metric, of this batch alone;
    the values of a metric with several are numbered."""
    found = model.compute_metrics(inputs, targets, outputs, sample_weight=weights)
    out: dict[str, Tensor] = {}
    for name, value in found.items():
        if name != "loss":
            flat = value.detach().reshape(-1)
            out |= (
                {name: flat[0]}
                if value.numel() == 1
                else {f"{name}_{number}": one for number, one in enumerate(flat)}
            )
    return out


def _constants(model: Any) -> Iterator[tuple[str, Any, str]]:
    """Tensors that layers hold as they are (what `Normalization.adapt` saw): the layer's path,
    the layer and the attribute."""
    for path, layer in layers_of(model):
        for key, value in vars(layer).items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                yield path, layer, key


def _at(module: nn.Module, path: str) -> Any:
    """The parameter or buffer of that name; under `functional_call` what stands for it."""
    return functools.reduce(getattr, path.split("."), module)


def _value(variable: Any) -> Tensor:
    """A variable's value."""
    with unfaked():
        real = variable.value
    return _fake_or_cpu(real)


def _fake_or_cpu(real: Tensor) -> Tensor:
    """A copy of the tensor; under fake tensors one of its shape."""
    with unfaked():
        real = real.detach().clone()
    made = torch.empty(real.shape, dtype=real.dtype)
    return made if is_fake(made) else real.cpu()
