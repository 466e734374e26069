"""The data of Keras's `fit` as the batch of a plan: arrays, tensors, lists of numbers; several of
them in lists and dicts.

(x, y) or (x, y, sample_weight) -> {"inputs", "targets", "weights"}, of torch tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cost_models.errors import BadValue

__all__ = ["batch_of"]


def batch_of(
    data: Any, floatx: torch.dtype = torch.float32, what: str = "the batch"
) -> dict[str, Any]:
    """The batch of a `KerasModule`; one that is a batch already stays. Floating values become
    `floatx`, as in `fit`.

    Raises BadValue for what is not (x, y) or (x, y, sample_weight), and for what is no number.
    """
    if isinstance(data, Mapping) and "inputs" in data:
        return dict(data)
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        got = f"{len(data)} parts" if isinstance(data, tuple | list) else f"a {type(data).__name__}"
        raise BadValue(f"{what} is {got}: give (x, y) or (x, y, sample_weight)")
    x, y, *rest = data
    weights = rest[0] if rest else None
    if weights is not None and _is_nested(y) and not _is_nested(weights):
        # One weight for a sample counts for every output, as in `fit`.
        weights = _like(y, lambda _: weights)
    parts = {"inputs": x, "targets": y, "weights": weights}
    return {
        key: _tensors(part, floatx, f"{key} of {what}")
        for key, part in parts.items()
        if part is not None
    }


def _tensors(part: Any, floatx: torch.dtype, what: str) -> Any:
    """The part with its arrays as tensors, in the same containers."""
    return _like(part, lambda leaf: _tensor(leaf, floatx, what))


def _like(part: Any, leaf: Any) -> Any:
    if not _is_nested(part):
        return leaf(part)
    if isinstance(part, Mapping):
        return {key: _like(value, leaf) for key, value in part.items()}
    return type(part)(_like(value, leaf) for value in part)


def _is_nested(part: Any) -> bool:
    """Whether a part has several arrays in it; lists of numbers are one array."""
    return isinstance(part, Mapping) or (isinstance(part, list | tuple) and not _is_numbers(part))


def _is_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_numbers, value))
    return isinstance(value, bool | int | float | np.generic)


def _tensor(value: Any, floatx: torch.dtype, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            hint = (
                "; pass text through keras.layers.TextVectorization first"
                if array.dtype.kind in "USO"
                else ""
            )
            raise BadValue(f"{what} have dtype {array.dtype}, not numbers{hint}")
        value = torch.as_tensor(
            array.astype(np.int64) if array.dtype in (np.uint16, np.uint32, np.uint64) else array
        )
    found: Tensor = value.to(floatx) if value.is_floating_point() else value
    return found
