"""Bytes of a dtype's element, of the optimizer's state, and of what the allocator hands out for a
request."""

from __future__ import annotations

import math

from cost_models.errors import unknown_name
from cost_models.optimizers import optimizer_of

__all__ = [
    "ALLOCATION_ROUNDING", "LSTM_LIBRARIES", "MEMORY_HEADROOM", "allocated_bytes", "dtype_bytes",
    "list_dtypes", "lstm_reserve_elements", "optimizer_state_bytes",
]  # fmt: skip

#: torch's names of dtypes and their bytes per element. Source: torch.dtype documentation ("Tensor
#: Attributes").
_DTYPE_BYTES = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "complex64": 8,
    "complex128": 16,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}

#: Every request is rounded up to this many bytes. Source: torch c10/cuda/CUDACachingAllocator
#: `kMinBlockSize = 512`.
ALLOCATION_ROUNDING = 512

#: The share of a device's usable memory that plans keep free by default. An estimate: twice the
#: 2 % by which predictions are off, plus what a caching allocator loses between blocks (when full,
#: it flushes its cache and tries again).
MEMORY_HEADROOM = 0.05

#: Libraries whose LSTM keeps a workspace of its own for backward; others keep the gates and cell.
LSTM_LIBRARIES = ("onednn",)


def list_dtypes() -> tuple[str, ...]:
    """The known dtype names, sorted."""
    return tuple(sorted(_DTYPE_BYTES))


def dtype_bytes(dtype: str) -> int:
    """Bytes of one element of `dtype` (torch's name without `torch.`). Raises `UnknownName` for
    any other name."""
    if dtype not in _DTYPE_BYTES:
        raise unknown_name("dtype", dtype, tuple(_DTYPE_BYTES))
    return _DTYPE_BYTES[dtype]


def optimizer_state_bytes(optimizer: str, *, numel: int, dtype: str) -> int:
    """Bytes of the state that `optimizer` keeps for one parameter of `numel` elements: `states *
    numel * dtype_bytes + step_bytes`.

    Raises `UnknownName` for an optimizer that is not in `cost_models.optimizers`.
    """
    known = optimizer_of(optimizer)
    return known.states * numel * dtype_bytes(dtype) + known.step_bytes


def allocated_bytes(nbytes: int) -> int:
    """Bytes that the caching allocator hands out for a request of `nbytes`: rounded up to 512 B;
    0 for an empty tensor."""
    return math.ceil(nbytes / ALLOCATION_ROUNDING) * ALLOCATION_ROUNDING


def lstm_reserve_elements(
    library: str | None, *, steps: int, batch: int, width: int, hidden: int
) -> int:
    """Elements that the forward pass of one LSTM layer of `width` inputs keeps for backward, beside
    its results.

    The gates and the cell of every step, `5 T B H`; for `onednn`, with rows padded to `ld`,

        B (T (ld(4 H) + ld(H)) + (T + 1) (6 ld(max(I, H)) + 4 H))

    that is the gates and a cell of T steps and, for T + 1 steps, three states as wide as the wider
    of input and hidden units and two as wide as the hidden units, each for the layer's input and
    for its output. Fitted to the workspaces of oneDNN 3.12 (torch 2.13, an x86-64 CPU with AVX2):
    within 0.2 % of those above 1 MB, at nine sizes (2026-11-24); below, partly filled pages add.
    """
    if library is None:
        return 5 * steps * batch * hidden
    rows = steps * (_onednn_row(4 * hidden) + _onednn_row(hidden)) + (steps + 1) * (
        6 * _onednn_row(max(width, hidden)) + 4 * hidden
    )
    return batch * rows


def _onednn_row(size: int) -> int:
    """The elements of a row in oneDNN's workspace: whole cache lines of 16, and never a multiple of
    1 KiB (4-KiB aliasing)."""
    row = math.ceil(size / 16) * 16
    return row + 16 if row % 256 == 0 else row
