"""Kernels that check a value on the device, or keep it busy."""

from __future__ import annotations

import torch
import torch.utils.checkpoint

__all__ = ["assert_on_device", "hold_device"]


def assert_on_device(good: torch.Tensor, message: str) -> None:
    """Ends the run unless `good` (a scalar) holds, without waiting for the device: torch has no
    public name for that."""
    torch.ops.aten._assert_async.msg(good, message)


def hold_device(cycles: int) -> None:
    """Keeps the current CUDA device busy for about so many of its clock's cycles. Private: no
    public kernel does nothing for a time."""
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
