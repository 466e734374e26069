"""The workspace of recurrent layers, in bytes: gates of all steps, weights in another order."""

from __future__ import annotations

from dataclasses import dataclass

from cost_models.memory import dtype_bytes
from planner.predict.kernel_call import KernelCall

__all__ = ["lstm", "lstm_backward", "recurrent", "recurrent_backward"]


def lstm(call: KernelCall) -> int:
    """oneDNN: the gates of all steps, and the weights in its own order. Our loop: the recurrent
    weights, transposed."""
    layer = _layer(call, 0)
    if not _by_onednn(call, 0):
        return call.nbytes(4)
    gates = layer.steps * layer.batch + layer.width + layer.hidden
    return (
        layer.size * (gates * 4 * layer.hidden + 3 * layer.batch * layer.hidden) * 65 // 64 + 8192
    )


def lstm_backward(call: KernelCall) -> int:
    """oneDNN: the gates of all steps, the weights and their gradients in its own order (more if the
    layer is as wide as its input), and the gradient of y in its format. Our loop: the gradient of
    the gates, and the states before each step, of all ranks if split."""
    layer = _layer(call, 3)
    if not _by_onednn(call, 3):
        return layer.one * (4 + layer.before)
    weights = (layer.width + layer.hidden) * (21 if layer.width == layer.hidden else 18) // 10
    return (
        layer.size * (layer.steps * layer.batch + weights) * 4 * layer.hidden * 65 // 64 + layer.one
    )


def recurrent(call: KernelCall) -> int:
    """A GRU that is not split: the input's part of the gates of all steps. Otherwise, also lists of
    every step's results, and the weights transposed."""
    layer = _layer(call, 0)
    gated = call.shape(3)[0] == 3 * layer.hidden
    if gated and call.ranks == 1:
        return 3 * layer.one
    return (8 if gated else 2) * layer.one + call.nbytes(3)


def recurrent_backward(call: KernelCall) -> int:
    """A GRU that is not split: the gradients of the gates of all steps, and those of the weights in
    another order. Otherwise, lists of them, stacked."""
    layer = _layer(call, 2)
    gated = call.shape(5)[0] == 3 * layer.hidden
    if gated and call.ranks == 1:
        return (
            4 * layer.one
            + max(0, call.nbytes(4) - call.nbytes(5))
            + 4 * layer.batch * layer.hidden * layer.size
        )
    return ((12 if gated else 4) + layer.before) * layer.one


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A recurrent layer: steps, samples, inputs, hidden units of this rank, bytes per element;
    `one`, the bytes of the hidden units of all steps; `before`, the bytes of the states before each
    step, in units of `one`."""

    steps: int
    batch: int
    width: int
    hidden: int
    size: int
    before: int

    @property
    def one(self) -> int:
        return self.steps * self.batch * self.hidden * self.size


def _layer(call: KernelCall, x: int) -> _Layer:
    (steps, batch, width), dtype = call.kind(x)
    before = 1 + 2 * call.ranks if call.ranks > 1 else 1
    return _Layer(
        steps=steps,
        batch=batch,
        width=width,
        hidden=call.shape(x + 1)[1],
        size=dtype_bytes(dtype),
        before=before,
    )


def _by_onednn(call: KernelCall, x: int) -> bool:
    """Whether oneDNN runs the layer: float32 on a CPU, not split, with biases. Source:
    planner.kernels.lstm."""
    return (
        call.host
        and call.ranks == 1
        and call.kind(x)[1] == "float32"
        and call.arguments[x + 5] is not None
    )
