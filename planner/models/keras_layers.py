"""How Keras's layers run in a plan: each under its path, recurrent ones as ops of ours, random
numbers drawn from the step's key.

Keras's own loop over time reads numbers out of tensors and has an op for every step and gate; ours
has one op per layer. Only tracing replaces it: the reference run uses Keras's loop, and torch's
math kernel for attention (the flash kernel of CPUs has another gradient for queries whose keys are
all masked). Keras's random numbers come from a state that every draw changes, which ranks could not
share. So they become torch's, which a plan draws from a key, and so does the reference run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cost_models.errors import NotTraceable
from planner.state.known import is_known

__all__ = ["Layer", "as_planned", "errors_as_raised"]


class Layer(nn.Module):
    """A torch module for a Keras layer: it has its path and its variables, and hooks see its
    calls."""

    def forward(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of the layer's call."""
        return call(*args, **kwargs)


@contextmanager
def as_planned(places: Mapping[int, Layer], *, tracing: bool) -> Iterator[None]:
    """A context in which Keras's layers run as the module's header says; `places` maps their ids to
    our modules."""
    import keras
    from keras.src.backend.torch import random  # no public place where all draws of layers pass

    with ExitStack() as stack:
        replace = partial(_replace, stack)
        for name in ("dropout", "normal", "uniform"):
            replace(random, name, globals()[f"_{name}"])
        replace(random, "torch_seed_generator", _no_generator)
        stack.enter_context(errors_as_raised())
        if not tracing:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        else:
            replace(
                keras.layers.Layer, "__call__", _under_its_path(keras.layers.Layer.__call__, places)
            )
            plain = keras.layers.RNN.inner_loop
            for kind in (keras.layers.RNN, keras.layers.LSTM, keras.layers.GRU):
                replace(kind, "inner_loop", _inner_loop(plain))
        yield


@contextmanager
def errors_as_raised() -> Iterator[None]:
    """A context in which Keras neither wraps exceptions nor hides the model's line."""
    import keras

    before = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()
    try:
        yield
    finally:
        if before:
            keras.config.enable_traceback_filtering()


def _replace(stack: ExitStack, place: Any, name: str, value: Any) -> None:
    stack.enter_context(patch.object(place, name, value))


def _under_its_path(call: Callable[..., Any], places: Mapping[int, Layer]) -> Callable[..., Any]:
    def through(layer: Any, *args: Any, **kwargs: Any) -> Any:
        place = places.get(id(layer))
        return (
            call(layer, *args, **kwargs)
            if place is None
            else place(partial(call, layer), *args, **kwargs)
        )

    return through


# ----------------------------------------------------------------------------------- random numbers


def _dropout(
    inputs: Tensor, rate: float, noise_shape: Sequence[int | None] | None = None, seed: Any = None
) -> Tensor:
    _refuse_fixed(seed)
    if noise_shape is None:
        return nn.functional.dropout(inputs, rate)
    shape = [
        have if want is None else want for want, have in zip(noise_shape, inputs.shape, strict=True)
    ]
    return inputs * nn.functional.dropout(
        torch.ones(shape, dtype=inputs.dtype, device=inputs.device), rate
    )


def _normal(
    shape: Sequence[int],
    mean: float = 0.0,
    stddev: float = 1.0,
    dtype: Any = None,
    seed: Any = None,
) -> Tensor:
    _refuse_fixed(seed)
    return torch.randn(tuple(shape), dtype=_dtype(dtype)) * stddev + mean


def _uniform(
    shape: Sequence[int],
    minval: float = 0.0,
    maxval: float = 1.0,
    dtype: Any = None,
    seed: Any = None,
) -> Tensor:
    _refuse_fixed(seed)
    return torch.rand(tuple(shape), dtype=_dtype(dtype)) * (maxval - minval) + minval


def _dtype(name: Any) -> torch.dtype:
    import keras

    found: torch.dtype = getattr(
        torch, str(keras.backend.standardize_dtype(name or keras.config.floatx()))
    )
    return found


def _refuse_fixed(seed: Any) -> None:
    if isinstance(seed, int):
        raise NotTraceable(
            f"a fixed seed ({seed}) gives the same random numbers in every step: make them once, "
            "outside the model"
        )


def _no_generator(seed: Any) -> Any:
    raise NotTraceable(
        "this random function of Keras is not supported: use dropout, normal or uniform"
    )


# --------------------------------------------------------------------------------- recurrent layers


def _inner_loop(plain: Callable[..., Any]) -> Callable[..., Any]:
    """`RNN.inner_loop`: the last output, all outputs [B, T, H] and the last states."""

    def loop(
        layer: Any, sequences: Tensor, initial_state: Any, mask: Any, training: bool = False
    ) -> tuple[Any, Any, Any]:
        states = list(initial_state) if isinstance(initial_state, list | tuple) else [initial_state]
        mask = mask[0] if isinstance(mask, list | tuple) else mask
        if layer.go_backwards:
            sequences, mask = sequences.flip(1), None if mask is None else mask.flip(1)
        mode = _mode(layer.cell, training)
        if mode:
            return _fused(layer, mode, sequences, states, mask, training)
        with patch.object(layer, "go_backwards", False), patch.object(layer, "unroll", True):
            return plain(layer, sequences, states, mask, training=training)  # type: ignore[no-any-return]

    return loop


def _mode(cell: Any, training: bool) -> str:
    """The mode of our recurrent layer that equals the cell; empty if there is none."""
    import keras

    layers, tanh, sigmoid = keras.layers, keras.activations.tanh, keras.activations.sigmoid
    if training and (
        getattr(cell, "recurrent_dropout", False)
        or (getattr(cell, "dropout", False) and _drops_by_gate(cell))
    ):
        return ""
    if type(cell) is layers.SimpleRNNCell:
        return {tanh: "tanh", keras.activations.relu: "relu"}.get(cell.activation, "")
    if type(cell) not in (layers.LSTMCell, layers.GRUCell) or (
        cell.activation,
        cell.recurrent_activation,
    ) != (tanh, sigmoid):
        return ""
    if type(cell) is layers.LSTMCell:
        return "lstm"
    return "keras-gru" if cell.reset_after else "reset-gru"


def _drops_by_gate(cell: Any) -> bool:
    return getattr(cell, "implementation", 2) == 1


def _fused(
    layer: Any,
    mode: str,
    sequences: Tensor,
    states: list[Tensor],
    mask: Tensor | None,
    training: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    cell = layer.cell
    if training and cell.dropout:
        sequences = sequences * cell.get_dropout_mask(sequences[:, 0, :]).unsqueeze(1)
    weights = _weights(cell, mode)
    x = sequences.to(weights[0].dtype).transpose(0, 1)
    before = [state.to(x.dtype) for state in states]
    on = () if mask is None else (mask.to(torch.bool).transpose(0, 1),)
    name = ("masked_" if on else "") + ("lstm" if mode == "lstm" else "recurrent")
    more = on if mode == "lstm" else (*on, mode)
    y, *after, _ = getattr(torch.ops.shardwright, name)(x, *before, *weights, *more)
    last = after[0]
    if on:
        y, last = _masked_outputs(layer, y, last, on[0], before[0])
    return last, y.transpose(0, 1), after


def _weights(cell: Any, mode: str) -> tuple[Any, ...]:
    """Weights as rows of gates, and both biases or none."""
    from keras import ops

    w_ih, w_hh = (ops.convert_to_tensor(w).t() for w in (cell.kernel, cell.recurrent_kernel))
    if not cell.use_bias:
        return w_ih, w_hh, None, None
    bias = ops.convert_to_tensor(cell.bias)
    return (
        w_ih,
        w_hh,
        *(bias.unbind(0) if mode == "keras-gru" else (bias, torch.zeros_like(bias))),
    )


def _masked_outputs(
    layer: Any, y: Tensor, last: Tensor, on: Tensor, before: Tensor
) -> tuple[Tensor, Tensor]:
    """The outputs, corrected where they are not the states: zero at masked steps if the layer says
    so, and zero before the first unmasked step."""
    if layer.zero_output_for_mask:
        return torch.where(on.unsqueeze(2), y, 0.0), torch.where(on[-1].unsqueeze(1), last, 0.0)
    if is_known(before) and not before.any():
        return y, last
    seen = on.to(torch.int32).cumsum(0) > 0
    return torch.where(seen.unsqueeze(2), y, 0.0), torch.where(seen[-1].unsqueeze(1), last, 0.0)
