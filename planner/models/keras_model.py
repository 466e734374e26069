"""A compiled Keras 3 model on its torch backend, taken as it is: `keras:module:function`.

The function returns (model, (x, y)). The model is called by Keras's `stateless_call`, its variables being the parameters and buffers
of a plain module; its loss is Keras's, its optimizer the torch one of the same name. `put_back` hands what was learned back to Keras.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cost_models.errors import BadValue
from planner.torch_private import is_fake, unfaked

__all__ = ["KerasModule", "is_keras", "parts_of", "put_back"]

_PREFIX = "keras:"

#: Keras's optimizers by the name of ours. Adam's epsilon is 1e-8, in Keras 1e-7.
_OPTIMIZERS = {"Adam": "adam", "AdamW": "adamw", "SGD": "sgd"}
#: Where the settings of ours are not the defaults of Keras's: what Keras's are to be.
_OURS = {"AdamW": {"weight_decay": 0.01}}


def is_keras(spec: str) -> bool:
    """Whether `spec` names a function that returns a Keras model."""
    return spec.startswith(_PREFIX)


class KerasModule(nn.Module):
    """The Keras model as a function of its variables, which are this module's parameters and buffers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        object.__setattr__(self, "keras_model", model)  # no submodule: its variables are ours
        self.trained, self.state = _names(model.trainable_variables), _names(model.non_trainable_variables)
        for name, value in zip(self.trained, map(_value, model.trainable_variables), strict=True):
            self.register_parameter(name, nn.Parameter(value))
        for name, value in zip(self.state, map(_value, model.non_trainable_variables), strict=True):
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """What the model gives in training; variables that it changes are written to the buffers."""
        buffers = [getattr(self, name) for name in self.state]
        model: Any = self.keras_model
        out, new = model.stateless_call([getattr(self, n) for n in self.trained], buffers, x, training=True)
        with torch.no_grad():
            for buffer, value in zip(buffers, new, strict=True):
                if value is not buffer:
                    buffer.copy_(value)
        return out  # type: ignore[no-any-return]


def _names(variables: Sequence[Any]) -> list[str]:
    """Variables' paths as parameters' names. Keras numbers models and layers through a whole process (`lstm_1`, `lstm_2`), and another
    process is to find the same names: so they are numbered here, in order."""
    out: list[str] = []
    for variable in variables:
        path = str(variable.path.partition("/")[2] or variable.path)
        name = re.sub(r"_\d+(?=/|$)", "", path).replace("/", "_").replace(".", "_")
        same = sum(re.fullmatch(rf"{re.escape(name)}(_\d+)?", other) is not None for other in out)
        out.append(f"{name}_{same}" if same else name)
    return out


def _value(variable: Any) -> Tensor:
    """A variable's value; under fake tensors one of its shape."""
    with unfaked():
        real = variable.value.detach().clone()
    made = torch.empty(real.shape, dtype=real.dtype)
    return made if is_fake(made) else real.cpu()


def parts_of(
    spec: str, call: Callable[[str], Any]
) -> tuple[nn.Module, tuple[Tensor, ...], Callable[[Any, Any], Tensor], dict[str, Any]]:
    """The module, batch and loss of a Keras model, and its optimizer; `call` calls the user's function of that name.

    Raises BadValue where Keras is not installed, runs on another backend, or has an optimizer that is not planned.
    """
    keras = _keras()
    with unfaked():
        keras.utils.set_random_seed(torch.initial_seed() % (1 << 32))  # Keras draws initial values from a seed of its own
        found = call(spec.removeprefix(_PREFIX))
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], keras.Model):
        raise BadValue(
            f"{spec} returned a {type(found).__name__}: return (model, (x, y)), a compiled keras.Model and an example batch"
        )
    model, batch = found
    if not getattr(model, "optimizer", None) or model.loss is None:
        raise BadValue(
            f"{spec} returned a model that is not compiled: model.compile(optimizer='adam', loss='binary_crossentropy')"
        )
    with unfaked():
        more = _optimizer_of(spec, model)
        real = tuple(torch.as_tensor(part) for part in batch)
    made = tuple(torch.empty(part.shape, dtype=part.dtype) for part in real)
    per_sample = keras.losses.get(model.loss)

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        """The mean of Keras's loss over the samples."""
        found = per_sample.call if hasattr(per_sample, "call") else per_sample
        mean: Tensor = found(target, outputs).mean()
        return mean

    return KerasModule(model), made if is_fake(made[0]) else real, loss, more


def _optimizer_of(spec: str, model: Any) -> dict[str, Any]:
    """What a workload says of the optimizer. Raises BadValue for what training by a plan would leave out."""
    kind = type(model.optimizer).__name__
    if kind not in _OPTIMIZERS:
        raise BadValue(f"{spec}: the optimizer {kind} is not planned; compile with one of {', '.join(_OPTIMIZERS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Keras's, of numpy's newest
        found = model.optimizer.get_config()
        planned = {**type(model.optimizer)().get_config(), **_OURS.get(kind, {})}
    for key, value in found.items():
        if key not in ("name", "learning_rate", "global_clipnorm") and value != planned[key]:
            raise BadValue(f"{spec}: {kind} with {key}={value} is not planned, {key}={planned[key]} is")
    if not isinstance(found["learning_rate"], float):
        raise BadValue(f"{spec}: a schedule of the learning rate is not planned; compile with a number")
    if model.losses:
        raise BadValue(f"{spec}: losses that layers add (regularizers) are not planned; return them from a torch module")
    return {"optimizer": _OPTIMIZERS[kind], "learning_rate": found["learning_rate"], "clip_norm": found["global_clipnorm"]}


def put_back(model: Any, state: Mapping[str, Tensor]) -> None:
    """Gives the Keras model what was learned: `state` is `Trained.state`."""
    for variables in (model.trainable_variables, model.non_trainable_variables):
        for name, variable in zip(_names(variables), variables, strict=True):
            if name in state:
                variable.assign(state[name])


def _keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
    except ImportError as error:
        raise BadValue(f"Keras models need Keras 3 ({error}): pip install 'shardwright[keras]'") from error
    if keras.backend.backend() != "torch":
        raise BadValue(f"Keras runs on {keras.backend.backend()}: set KERAS_BACKEND=torch before it is imported")
    return keras
