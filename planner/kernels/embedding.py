"""Embedding look-ups on a rank that holds only the rows [offset, offset + n) of the table."""

from __future__ import annotations

import torch
from torch import Tensor

from planner.kernels.in_range import check_range

__all__ = ["embedding_backward_shard", "embedding_shard"]


def embedding_shard(weight: Tensor, ids: Tensor, offset: int, rows: int) -> Tensor:
    """weight[ids - offset], zero where the row is another rank's: a partial sum over the ranks that
    split the table's `rows` rows.

    Raises OutOfRange for an id that no rank holds.
    """
    check_range("id", ids, rows)
    local, inside = _local_ids(ids, offset, weight.shape[0])
    return torch.embedding(weight, local).mul_(inside.unsqueeze(-1))


def embedding_backward_shard(grad: Tensor, ids: Tensor, num_rows: int, offset: int) -> Tensor:
    """The gradient of this rank's `num_rows` rows."""
    local, inside = _local_ids(ids, offset, num_rows)
    rows = grad.reshape(-1, grad.shape[-1]) * inside.reshape(-1, 1)
    return grad.new_zeros(num_rows, grad.shape[-1]).index_add_(0, local.reshape(-1), rows)


def _local_ids(ids: Tensor, offset: int, num_rows: int) -> tuple[Tensor, Tensor]:
    local = ids - offset
    inside = (local >= 0) & (local < num_rows)
    return local.mul_(inside), inside
