"""Bytes: of a dtype's element, of the optimizer's state, and of what the allocator makes of a
request."""

from __future__ import annotations

import math

from cost_models.errors import unknown_name
from cost_models.optimizers import optimizer_of

__all__ = [
    "ALLOCATION_ROUNDING", "LSTM_LIBRARIES", "MEMORY_HEADROOM", "allocated_bytes", "dtype_bytes",
    "list_dtypes", "lstm_reserve_elements", "optimizer_state_bytes",
]  # fmt: skip

#: torch's names of dtypes and their bytes an element. Source: torch.dtype documentation ("Tensor
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

#: The share of a device's usable memory that plans keep free by default. Twice what an allocation
#: predicted within 2 % is off by, and what a caching allocator loses between blocks; one that is
#: full flushes its cache and tries again. An estimate.
MEMORY_HEADROOM = 0.05

#: Whose LSTM keeps a workspace of its own for backward; others keep the gates and the cell.
LSTM_LIBRARIES = ("onednn",)


def list_dtypes() -> tuple[str, ...]:
    """The dtype names that are known, sorted."""
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

    Raises `UnknownName` for one that is not in `cost_models.optimizers`.
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
    """Elements that the forward of one LSTM layer of `width` inputs keeps for its backward, besides
    its results.

    The gates and the cell of every step, `5 T B H`; of `onednn`, with rows padded to `ld`,

        B (T (ld(4 H) + ld(H)) + (T + 1) (6 ld(max(I, H)) + 4 H))

    the gates and a cell of T steps, and of T + 1 steps three states as wide as the wider of input
    and hidden units and two as wide as these, each kept of the layer's input and of its output.
    Read off the workspaces of oneDNN 3.12 (torch 2.13, an x86-64 CPU with AVX2): within 0.2 % of
    those above 1 MB, at nine sizes (2026-11-24); below, pages that are not full add to it.
    """
    if library is None:
        return 5 * steps * batch * hidden
    rows = steps * (_onednn_row(4 * hidden) + _onednn_row(hidden)) + (steps + 1) * (
        6 * _onednn_row(max(width, hidden)) + 4 * hidden
    )
    return batch * rows


def _onednn_row(size: int) -> int:
    """A row's elements in oneDNN's workspace: whole cache lines of 16, and never a multiple of 1
    KiB (4-KiB aliasing)."""
    row = math.ceil(size / 16) * 16
    return row + 16 if row % 256 == 0 else row
