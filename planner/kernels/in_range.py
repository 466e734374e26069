"""Refuses indices out of range in kernels of ours, as torch does in its own, without a message
between ranks or a wait for the device.

On a CPU the smallest and the largest index are checked, which costs one pass over the indices and
none over the tensor indexed. On CUDA the device asserts, as torch's own kernels do: the step's next
synchronisation raises, and the assertion is on stderr.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cost_models.errors import OutOfRange
from planner.torch_private.device import assert_on_device
from planner.torch_private.fake_tensors import has_values

__all__ = ["check_range", "checked_ids"]


def check_range(
    what: str, ids: Tensor, size: int, *, least: int = 0, ignored: int | None = None
) -> None:
    """Raises OutOfRange if one of `ids` is neither `ignored` nor in [`least`, `size`); `what`
    names it in the message."""
    if ids.numel() == 0 or not has_values(ids):
        return
    if ids.device.type != "cpu":
        good = (ids >= least) & (ids < size)
        good = good if ignored is None else good | (ids == ignored)
        assert_on_device(good.all(), f"{what} out of range: valid are {least} to {size - 1}")
        return
    low, high = torch.aminmax(ids)
    if low >= least and high < size:
        return
    bad = (ids < least) | (ids >= size)
    bad = bad if ignored is None else bad & (ids != ignored)
    if bad.any():
        kept = "" if ignored is None else f", and {ignored}, which is ignored"
        raise OutOfRange(
            f"{what} {ids[bad][0].item()} is out of range: valid are {least} to {size - 1}{kept}"
        )


def checked_ids(ids: Tensor, size: int, wrap: bool) -> Tensor:
    """The ids, each in [0, `size`). With `wrap`, negative ids count from the end. Raises
    OutOfRange."""
    check_range("index", ids, size, least=-size if wrap else 0)
    return torch.remainder(ids, size) if wrap else ids.clone()


@torch.library.custom_op("shardwright::checked_ids", mutates_args=())
def _checked_ids(ids: Tensor, size: int, wrap: bool) -> Tensor:
    return checked_ids(ids, size, wrap)


@_checked_ids.register_fake
def _(ids: Tensor, size: int, wrap: bool) -> Tensor:
    return torch.empty_like(ids)
