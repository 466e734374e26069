"""The workspace of attention, in bytes: tables of scores, and keys and values repeated for grouped
queries."""

from __future__ import annotations

import math

from cost_models.memory import dtype_bytes
from planner.predict.kernel_call import KernelCall, nbytes_of

__all__ = ["attention", "attention_backward", "masked", "masked_backward"]


def attention(call: KernelCall) -> int:
    """Keys and values repeated for grouped queries, and the flash kernel's block of scores."""
    return 2 * _grouped(call, 0, 1) + _block(call, 0, 1)


def attention_backward(call: KernelCall) -> int:
    """The same, and the gradients of the repeated keys and values, then summed and copied."""
    wide = _grouped(call, 1, 2)
    return 4 * wide + max(_block_backward(call, 1, 2), 2 * call.nbytes(2) if wide else 0)


def masked(call: KernelCall) -> int:
    """The same beside a bias in the dtype of scores; before the result is allocated, the inverse of
    a boolean bias too."""
    bias, shape = _bias(call, 3, 0), call.kind(3)
    opposite = math.prod(shape[0]) if shape[1] == "bool" else 0
    return (
        2 * _grouped(call, 0, 1) + bias + max(_block(call, 0, 1), opposite - nbytes_of(call.result))
    )


def masked_backward(call: KernelCall) -> int:
    """That of the flash kernel or, if the bias gets a gradient, three tables of scores."""
    if call.last is not True:
        wide, beside = _grouped(call, 1, 2), _block_backward(call, 1, 2) + _bias(call, 4, 1)
        return 4 * wide + max(0, beside - 2 * call.nbytes(2)) if wide else beside
    (batch, heads, length, _), dtype = call.kind(1)
    scores = batch * heads * length * call.shape(2)[2] * (8 if dtype == "float64" else 4)
    return 3 * scores + 2 * _grouped(call, 1, 2) + call.nbytes(1)


def _grouped(call: KernelCall, q: int, k: int) -> int:
    """Bytes of keys repeated for each query head; 0 if none are."""
    heads, kept = call.shape(q)[1], call.shape(k)[1]
    return call.nbytes(k) // kept * heads if kept != heads else 0


def _block(call: KernelCall, q: int, k: int) -> int:
    """A CPU thread's scores of a block of queries and keys. Source:
    ATen/native/cpu/FlashAttentionKernel.cpp, `cpu_flash_attention` (256, 64 or 32 queries,
    depending on how many there are, and 512 keys)."""
    if not call.host:
        return 0
    (_, _, queries, width), dtype = call.kind(q)
    rows, columns = _rows_and_columns(queries, call.shape(k)[2])
    return (rows * columns + 2 * rows + rows * width) * max(4, dtype_bytes(dtype))


def _block_backward(call: KernelCall, q: int, k: int) -> int:
    """The weights of a block and their gradients, and a sum per row. Source:
    `cpu_flash_attention_backward` in the same file."""
    if not call.host:
        return 0
    rows, columns = _rows_and_columns(call.shape(q)[2], call.shape(k)[2])
    return (2 * rows * columns + rows) * max(4, dtype_bytes(call.kind(q)[1]))


def _rows_and_columns(queries: int, keys: int) -> tuple[int, int]:
    return 256 if queries >= 768 else 64 if queries >= 192 else 32, min(512, keys)


def _bias(call: KernelCall, bias: int, q: int) -> int:
    """A bias of another dtype, converted to that of the scores."""
    shape, dtype = call.kind(bias)
    wide = dtype_bytes(call.kind(q)[1])
    return math.prod(shape) * wide if dtype != call.kind(q)[1] else 0
