"""The message for an op that failed because of an index: the value and its range. Both are found
after the failure, at no cost to a step.

torch's kernels refuse indices themselves, some without the value (`index out of range in self`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cost_models.errors import OutOfRange, RunFailed, UserError
from planner.program.program import Compute, Instruction, Ref

__all__ = ["said"]

#: The positions of an op's arguments: its indices, the tensor indexed, and the number of the
#: indexed dim (None: dim 0).
_INDICES: dict[str, tuple[int, int, int | None]] = {
    "aten.embedding.default": (1, 0, None),
    **dict.fromkeys(
        (
            "aten.gather.default",
            "aten.index_add.default",
            "aten.index_copy.default",
            "aten.index_fill.int_Scalar",
            "aten.index_fill.int_Tensor",
            "aten.index_reduce.default",
            "aten.index_select.default",
            "aten.scatter.reduce",
            "aten.scatter.src",
            "aten.scatter.value",
            "aten.scatter_add.default",
            "aten.scatter_reduce.two",
        ),
        (2, 0, 1),
    ),
    **dict.fromkeys(
        ("aten.multi_margin_loss.default", "aten.nll_loss2d_forward.default"), (1, 0, -1)
    ),
}

#: How torch's kernels begin to say it: of `index`, `take` and `put`, of a dim that others than
#: these go along, of a bag, on CUDA.
_WORDS = (
    "index",
    "out of range",
    "Target",
    "target out of range",
    "INDICES",
    "Index",
    "CUDA error: device-side assert",
)


def said(
    error: Exception, at: Instruction | None, values: Mapping[str, Any]
) -> tuple[type[UserError], str]:
    """The class and the message of the error for the failure of instruction `at`; `values` are the
    step's variables."""
    if isinstance(error, OutOfRange):
        return OutOfRange, str(error)
    if isinstance(at, Compute):
        found = _found(at, values) or (str(error) if str(error).startswith(_WORDS) else "")
        if found:
            return OutOfRange, found.splitlines()[0]
    return RunFailed, str(error)


def _found(at: Compute, values: Mapping[str, Any]) -> str:
    """The first index out of range among the arguments, in words; empty if there is none, or none
    can be read."""
    if at.op not in _INDICES:
        return ""
    place, of, dim = _INDICES[at.op]
    ids, table = _value(at.args[place], values), _value(at.args[of], values)
    if ids is None or table is None or ids.device.type != "cpu" or ids.is_floating_point():
        return ""
    along = 0 if dim is None else min(1, table.dim() - 1) if dim < 0 else at.args[dim]
    size = table.shape[along] if table.dim() else 1
    bad = ids[(ids < (-size if "fill" in at.op else 0)) | (ids >= size)]
    return (
        f"index {bad[0].item()} is out of range: valid are 0 to {size - 1}" if bad.numel() else ""
    )


def _value(argument: Any, values: Mapping[str, Any]) -> Tensor | None:
    found = values.get(f"t{argument.id}") if isinstance(argument, Ref) else None
    return found if isinstance(found, torch.Tensor) else None
