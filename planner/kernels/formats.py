"""Ops whose kernels ignore the strides of their operands, and a wrapper that passes them operands
laid out as eager autograd would.

Most of torch's kernels read the strides of every operand. A few assume that operands are
contiguous, or that one has the strides of another, and silently give wrong numbers if not. Eager
mode never shows this: its derivative formulas make the strides agree, as they are on one device. A
program's operands may have other strides, after a slice, a gather or a view of another shape, so
they are made to agree where they are read. `tests/planner/test_formats.py` runs every op with every
pairing of formats, and fails if one is missing here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor

__all__ = ["ADDRESS_READERS", "alike", "tensors_in"]

#: What such an op needs. `contiguous`: every operand is. `vectors`: all operands of lower rank than
#: the largest are contiguous; images are read by their strides. `images`: all images are
#: channels-last (on CPU) or all are contiguous, and vectors are contiguous.
ADDRESS_READERS: dict[str, str] = {
    "aten._embedding_bag.default": "contiguous",
    "aten._embedding_bag_forward_only.default": "contiguous",
    "aten._embedding_bag_backward.default": "contiguous",
    "aten._embedding_bag_dense_backward.default": "contiguous",
    "aten._embedding_bag_per_sample_weights_backward.default": "contiguous",
    "aten._linalg_check_errors.default": "contiguous",
    "aten._linalg_det.default": "contiguous",
    "aten._linalg_slogdet.default": "contiguous",
    "aten._linalg_solve_ex.default": "contiguous",
    "aten._pdist_backward.default": "contiguous",
    "aten._pdist_forward.default": "contiguous",
    "aten._scaled_dot_product_flash_attention_for_cpu.default": "contiguous",
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": "contiguous",
    "aten._weight_norm_interface.default": "contiguous",
    "aten._weight_norm_interface_backward.default": "contiguous",
    "aten.adaptive_max_pool3d_backward.default": "contiguous",
    "aten.fractional_max_pool2d_backward.default": "contiguous",
    "aten.fractional_max_pool3d_backward.default": "contiguous",
    "aten.native_batch_norm_backward.default": "vectors",
    "aten.native_group_norm.default": "images",
    "aten.native_group_norm_backward.default": "images",
    "aten.native_layer_norm_backward.default": "contiguous",
    "aten.nll_loss2d_backward.default": "contiguous",
    "aten.view_as_complex.default": "contiguous",
    "shardwright.batch_norm_backward": "vectors",
}

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def alike(op: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, which runs `op`, wrapped to lay its operands out as the kernel needs; those that
    already are so are not copied."""
    need = ADDRESS_READERS.get(op)
    if need is None:
        return call

    @wraps(call)
    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = [*tensors_in(args), *tensors_in(tuple(kwargs.values()))]
        rank = max((t.dim() for t in tensors), default=0)
        images = need == "vectors" or (need == "images" and _all_channels_last(tensors, rank))
        below = rank if images else rank + 1
        return call(
            *(_laid(a, below) for a in args),
            **{key: _laid(value, below) for key, value in kwargs.items()},
        )

    return run


def _all_channels_last(tensors: list[Tensor], rank: int) -> bool:
    """Whether all tensors of that rank are channels-last; False on a GPU, whose kernels want
    contiguous ones."""
    wanted = _CHANNELS_LAST.get(rank)
    return wanted is not None and all(
        t.device.type != "cuda" and t.is_contiguous(memory_format=wanted)
        for t in tensors
        if t.dim() == rank
    )


def _laid(argument: Any, below: int) -> Any:
    """The argument, with its tensors of a rank less than `below` made contiguous."""
    if isinstance(argument, Tensor):
        return argument.contiguous() if argument.dim() < below else argument
    return (
        [_laid(item, below) for item in argument]
        if isinstance(argument, tuple | list)
        else argument
    )


def tensors_in(argument: Any) -> Iterator[Tensor]:
    """The tensors in an argument, in order, also those nested in tuples and lists."""
    if isinstance(argument, Tensor):
        yield argument
    elif isinstance(argument, tuple | list):
        for item in argument:
            yield from tensors_in(item)
