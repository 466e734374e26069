"""`shardwright.accumulate`: where a value is summed over the microbatches of a step; and
`shardwright.piece`: one microbatch's part of a tensor that is the same in all of them."""

from __future__ import annotations

from torch import Tensor

from planner.kernels.dropout import numbers_of_key

__all__ = ["accumulate", "piece"]


def accumulate(x: Tensor, term: Tensor | None = None, ahead: bool = False) -> Tensor:
    """x, one microbatch's term of a sum; or, as programs call it, the sum x with one more `term`,
    which is added in place. `ahead`: the sum is complete before the first microbatch's forward."""
    return x if term is None else x.add_(term)


def piece(x: Tensor, key: Tensor, dim: int, whole: int, here: int) -> Tensor:
    """The part of x that belongs to the microbatch of the step's `key`: dim `dim` is runs of
    `whole` elements, and the microbatch has `here` elements of each."""
    shape = x.shape
    runs = x.reshape(*shape[:dim], shape[dim] // whole, whole, *shape[dim + 1 :])
    mine = runs.narrow(dim + 1, numbers_of_key(key)[1] * here, here)
    return mine.reshape(*shape[:dim], shape[dim] // whole * here, *shape[dim + 1 :])
