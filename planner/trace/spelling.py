"""One spelling for each op: views, transposes, copies and fills, whatever name torch recorded."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from planner.graph.graph import (
    Serial,
)

__all__ = ["NUMBERED", "normalised"]


_VIEWS = {"aten.view.default", "aten._unsafe_view.default", "aten.reshape.default"}

#: Ops whose callers promise that indices are in range.
_SAFE = {
    "aten._unsafe_index_put.default": "aten.index_put.default",
    "aten._unsafe_index.Tensor": "aten.index.Tensor",
}

#: The argument position of the serial number that tells apart our random ops in a step.
NUMBERED = {"dropout": 3, "uniform": 2}


def normalised(
    op: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """The one spelling of each op: views as `shardwright.reshape`, transposes as permutes, copies
    as casts; arguments that only say where a tensor is (device, layout, pinning) are dropped. So is
    a memory format, which the device of the trace chose (`kernels/formats.py`), unless it is the
    copy to contiguous order that a later view needs."""
    format_of_copy = kwargs.get("memory_format") if op == "aten.clone.default" else None
    for name in ("device", "layout", "pin_memory", "memory_format", "non_blocking"):
        kwargs.pop(name, None)
    if format_of_copy == "torch.contiguous_format":
        kwargs["memory_format"] = format_of_copy
    namespace, name, _ = op.split(".")
    if namespace == "shardwright" and name in NUMBERED:
        at = NUMBERED[name]
        args = (*args[:at], Serial(args[at]), *args[at + 1 :])
    if namespace == "shardwright":
        return f"{namespace}.{name}", args, kwargs
    if op == "aten.copy_.default":
        return "aten._to_copy.default", (args[1],), {"dtype": str(result.dtype)}
    filled = _fill_value(op, args)
    op = _SAFE.get(op, op)
    if op in _VIEWS:
        return "shardwright.reshape", (args[0], tuple(result.shape)), {}
    rank = result.dim() if isinstance(result, Tensor) else 0
    if filled is not None:
        return (
            "aten.full.default",
            (tuple(result.shape), _in_range(filled, result.dtype)),
            {"dtype": str(result.dtype)},
        )
    if op == "aten.t.default":
        return "aten.permute.default", (args[0], tuple(reversed(range(rank)))), {}
    if op == "aten.transpose.int":
        order = list(range(rank))
        if rank:
            a, b = args[1] % rank, args[2] % rank
            order[a], order[b] = order[b], order[a]
        return "aten.permute.default", (args[0], tuple(order)), {}
    if op == "aten.permute.default":
        return op, (args[0], tuple(d % rank for d in args[1])), {}
    if op in (
        "aten.unsqueeze.default",
        "aten.squeeze.dim",
        "aten.squeeze.default",
        "aten.squeeze.dims",
    ):
        return "shardwright.reshape", (args[0], tuple(result.shape)), {}
    if op == "aten.expand.default":
        return op, (args[0], tuple(result.shape)), {}
    return op, args, kwargs


def _in_range(value: Any, dtype: torch.dtype) -> Any:
    """The number as cast to the dtype: infinite if it is out of its range."""
    if dtype.is_floating_point and isinstance(value, float) and abs(value) > torch.finfo(dtype).max:
        return math.copysign(math.inf, value)
    return value


def _fill_value(op: str, args: tuple[Any, ...]) -> Any:
    """The number with which an op fills a new tensor; None if it is no such op."""
    name = op.split(".")[1]
    if name in (
        "zeros",
        "zeros_like",
        "new_zeros",
        "ones",
        "ones_like",
        "new_ones",
        "empty",
        "empty_like",
        "new_empty",
    ):
        return 1 if "ones" in name else 0  # an empty tensor is written before it is read
    if name in ("zero", "resize_"):
        return 0
    if name in ("full_like", "full") or op == "aten.fill.Scalar":
        return args[1]
    return args[2] if name == "new_full" else None
