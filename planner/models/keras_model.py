"""A compiled Keras 3 model on its torch backend, taken as it is: `keras:module:function`.

The function returns (model, (x, y)), (model, (x, y, sample_weight)), or either with a dict of
`fit`'s keyword arguments at the end. The loss is what the model's own `compute_loss` gives, its
optimizer Keras's. `put_back` hands what was learned back to Keras.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from cost_models.errors import BadValue
from planner.models.keras_batch import batch_of
from planner.models.keras_layers import errors_as_raised
from planner.models.keras_module import KerasModule
from planner.models.keras_names import layers_of, variable_names
from planner.models.keras_optimizer import optimizer_of
from planner.models.reported import Reported
from planner.torch_private.fake_tensors import fake_mode_is_on
from planner.torch_private.modes import unfaked

__all__ = ["KerasModule", "batch_of", "is_keras", "parts_of", "put_back"]

_PREFIX = "keras:"

#: The keyword arguments of `fit` that are supported.
_FIT = ("class_weight", "sample_weight")


def is_keras(spec: str) -> bool:
    """Whether `spec` names a function that returns a Keras model."""
    return spec.startswith(_PREFIX)


def loss_of_keras(outputs: Reported, _: Any) -> Reported:
    """The loss of a workload: the module gives it already."""
    return outputs


def parts_of(
    spec: str, call: Callable[[str], Any], dtype: str
) -> tuple[nn.Module, dict[str, Any], Callable[[Any, Any], Any], dict[str, Any]]:
    """The module, batch and loss of a Keras model, and its optimizer; `call` calls the user's
    function of that name, under `dtype` as Keras's floatx.

    Raises BadValue where Keras is not installed, runs on another backend, or has an optimizer or a
    step that is not supported.
    """
    keras = _keras()
    with unfaked(), _floatx(keras, dtype):
        # Keras draws initial values from a seed of its own.
        keras.utils.set_random_seed(torch.initial_seed() % (1 << 32))
        model, data, options = _returned(spec, call(spec.removeprefix(_PREFIX)), keras)
        real = batch_of(data, getattr(torch, dtype), f"the batch of {spec}")
        _check_weights(spec, real, options)
        _build(spec, model, real, keras)
        _check_dtypes(spec, model, dtype)
        named = variable_names(model)
        more = optimizer_of(spec, model, {id(variable): name for name, variable in named})
    for path, layer in layers_of(model):
        if getattr(layer, "stateful", False):
            raise BadValue(
                f"{spec}: layer {path} keeps its state from batch to batch, which is not "
                "supported: leave out stateful=True"
            )
    if not model.trainable_variables:
        raise BadValue(
            f"{spec} returned a model without trainable variables: add a layer with weights"
        )
    module = KerasModule(model, options.get("class_weight"))
    return module, _as_made(real) if fake_mode_is_on() else real, loss_of_keras, more


def _returned(spec: str, found: Any, keras: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The model, the data, and `fit`'s keyword arguments."""
    wanted = "return (model, (x, y)), a compiled keras.Model and an example batch"
    if (
        not isinstance(found, tuple)
        or len(found) not in (2, 3)
        or not isinstance(found[0], keras.Model)
    ):
        raise BadValue(f"{spec} returned a {type(found).__name__}: {wanted}")
    model, data, *rest = found
    options = rest[0] if rest else {}
    if not isinstance(options, Mapping) or not set(options) <= set(_FIT):
        raise BadValue(
            f"{spec} returned {options!r} after the batch: give a dict with {' or '.join(_FIT)}, or nothing"
        )
    if not getattr(model, "optimizer", None) or not getattr(model, "compiled", False):
        raise BadValue(
            f"{spec} returned a model that is not compiled: model.compile(optimizer='adam', loss='binary_crossentropy')"
        )
    if type(model).train_step is not keras.Model.train_step:
        raise BadValue(
            f"{spec}: {type(model).__name__} has its own train_step, which is not supported: "
            "override compute_loss"
        )
    if options.get("sample_weight") is not None and isinstance(data, tuple | list):
        data = (*data[:2], options["sample_weight"])
    return model, data, dict(options)


def _check_weights(spec: str, batch: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    if options.get("class_weight"):
        if "weights" in batch:
            raise BadValue(
                f"{spec}: class_weight and sample_weight at the same time; give one of them"
            )
        if not isinstance(batch.get("targets"), Tensor):
            raise BadValue(
                f"{spec}: class_weight is for a model with one output; give sample_weight"
            )


def _build(spec: str, model: Any, batch: Mapping[str, Any], keras: Any) -> None:
    """Makes the variables of a model that has none yet, from the shapes of its first batch, as
    `fit` does."""
    data = (batch["inputs"], batch.get("targets"), batch.get("weights"))
    try:
        # The optimizer counts as built: its state is held by the plan's optimizer.
        with errors_as_raised(), keras.device("cpu"), patch.object(model.optimizer, "built", True):
            # What `fit` calls; the public `build` needs shapes and ignores subclasses.
            model._symbolic_build(data_batch=data)
    except (
        ValueError,
        RuntimeError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        NotImplementedError,
    ) as error:
        # Keras still holds what it began to build, and would go on with it in the next model.
        keras.utils.clear_session()
        _, _, said = f"Exception encountered:\n{error}".rpartition("Exception encountered:\n")
        raise BadValue(
            f"{spec}: Keras cannot build the model on the batch: {said.strip(chr(39)).splitlines()[0]}"
        ) from error


def _check_dtypes(spec: str, model: Any, dtype: str) -> None:
    wrong = {str(v.dtype) for v in model.trainable_variables if "float" in str(v.dtype)} - {dtype}
    if wrong:
        raise BadValue(
            f"{spec} makes variables of {', '.join(sorted(wrong))} and --precision asks for {dtype}: "
            "leave out keras.config.set_floatx and dtype=, or give the --precision that matches "
            "them"
        )


def _as_made(tree: Any) -> Any:
    """The batch as tensors without memory."""
    if isinstance(tree, Tensor):
        return torch.empty(tree.shape, dtype=tree.dtype)
    if isinstance(tree, Mapping):
        return {key: _as_made(value) for key, value in tree.items()}
    return type(tree)(map(_as_made, tree)) if isinstance(tree, tuple | list) else tree


def put_back(model: Any, state: Mapping[str, Tensor]) -> None:
    """Copies the trained values to the Keras model: `state` is `Trained.state`."""
    for name, variable in variable_names(model):
        if name in state:
            variable.assign(state[name])


@contextmanager
def _floatx(keras: Any, dtype: str) -> Iterator[None]:
    """A context in which `dtype` is Keras's floatx, unless the user's function sets another one;
    restores the old one at the end."""
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    if policy.name == before:
        keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(before)
        keras.config.set_dtype_policy(policy)


def _keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
    except ImportError as error:
        raise BadValue(
            f"Keras models need Keras 3 ({error}): pip install 'shardwright[keras]'"
        ) from error
    if keras.backend.backend() != "torch":
        raise BadValue(
            f"Keras runs on {keras.backend.backend()}: set KERAS_BACKEND=torch before it is imported"
        )
    return keras
