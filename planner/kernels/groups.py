"""The collectives that kernels and the runtime use, one name for each over torch versions and
backends.

torch 2.13 renamed `all_gather_into_tensor` and `reduce_scatter_tensor`. gloo's own collectives are
slow where its all_to_all is not (measured on a 2-core EPYC, torch 2.13, float32), so on gloo:

* a reduce_scatter is an all_to_all and a local reduction: 16 MB on 2 ranks 11 ms, not 40 ms;
* an all_reduce or all_gather of few bytes sends everything to everyone: 16 KB all-reduced on 2
  ranks 0.3 ms, not 0.5 ms, on 4 (two to a core) 1.1 ms, not 5 ms. Every rank adds in mesh order, so
  all get the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from planner.kernels.shared import is_gloo, shared_memory_of

__all__ = [
    "SMALL_BYTES", "all_gather", "all_to_all", "gathered", "is_gloo", "is_small", "reduce_blocks",
    "reduced", "scatter_blocks", "scattered", "send_to_all",
]  # fmt: skip

#: Up to this many bytes received per rank, sending everything to everyone is faster on gloo.
SMALL_BYTES = 1 << 19

_all_gather: Callable[..., Any] = (
    getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
)
_reduce_scatter: Callable[..., Any] = (
    getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
)


def is_small(part: Tensor, num_ranks: int, group: dist.ProcessGroup) -> bool:
    """Whether `send_to_all` is the fastest way to give `part` to all ranks."""
    return part.nbytes * num_ranks <= SMALL_BYTES and is_gloo(group)


def send_to_all(
    part: Tensor, num_ranks: int, group: dist.ProcessGroup, async_op: bool = False
) -> tuple[Tensor, Any]:
    """The parts of all ranks stacked on a new first dim, by an all_to_all."""
    return all_to_all(part.expand(num_ranks, *part.shape).contiguous(), group, async_op)


def all_gather(
    part: Tensor, num_ranks: int, group: dist.ProcessGroup, async_op: bool = False
) -> tuple[Tensor, Any]:
    """The parts of all ranks stacked on a new first dim, and, if `async_op`, the work to wait
    for."""
    if is_small(part, num_ranks, group):
        return send_to_all(part, num_ranks, group, async_op)
    out = part.new_empty(num_ranks, *part.shape)
    return out, _all_gather(out.view(-1), part.view(-1), group=group, async_op=async_op)


def all_to_all(
    blocks: Tensor, group: dist.ProcessGroup, async_op: bool = False
) -> tuple[Tensor, Any]:
    """Sends blocks[r] to rank r. Returns the blocks received, by sender, and, if `async_op`, the
    work to wait for."""
    out = torch.empty_like(blocks)
    return out, dist.all_to_all_single(out, blocks, group=group, async_op=async_op)


def scatter_blocks(
    blocks: Tensor, group: dist.ProcessGroup, reduce: str = "sum", async_op: bool = False
) -> tuple[Tensor, Any]:
    """The first half of a reduce-scatter of blocks [ranks, ...]: the tensor that `reduce_blocks`
    turns into the result, and the work to wait for."""
    if is_gloo(group):
        return all_to_all(blocks, group, async_op)
    op = dist.ReduceOp.MAX if reduce == "max" else dist.ReduceOp.SUM
    out = blocks.new_empty(1, *blocks.shape[1:])
    return out, _reduce_scatter(
        out.view(-1), blocks.view(-1), op=op, group=group, async_op=async_op
    )


def reduce_blocks(received: Tensor, reduce: str = "sum") -> Tensor:
    """This rank's block, reduced over the ranks in mesh order."""
    if received.shape[0] == 1:
        return received[0]
    return received.amax(0) if reduce == "max" else received.sum(0, dtype=received.dtype)


# -------------------------------------------------------------------------------- what kernels call


def gathered(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The parts of all ranks stacked on a new first dim."""
    memory, num_ranks = shared_memory_of(group), dist.get_world_size(group)
    if memory is None:
        return all_gather(part.contiguous(), num_ranks, group)[0]
    region = memory.region("", part.numel(), part.dtype)
    region.begin().view(part.shape).copy_(part)
    region.publish()
    out = torch.stack(region.rows()).view(num_ranks, *part.shape)
    region.done()
    return out


def reduced(value: Tensor, group: dist.ProcessGroup, reduce: str = "sum") -> Tensor:
    """The sum or maximum of `value` over the ranks, as a new tensor."""
    memory, out = shared_memory_of(group), value.clone(memory_format=torch.contiguous_format)
    if memory is None:
        dist.all_reduce(
            out, dist.ReduceOp.MAX if reduce == "max" else dist.ReduceOp.SUM, group=group
        )
        return out
    region = memory.region("", out.numel(), out.dtype)
    region.begin().copy_(out.view(-1))
    region.publish()
    region.reduce(out.view(-1), reduce)
    return out


def scattered(blocks: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's block of `blocks` [ranks, ...], summed over the ranks."""
    memory = shared_memory_of(group)
    if memory is None:
        return reduce_blocks(scatter_blocks(blocks.contiguous(), group)[0])
    region = memory.region("", blocks.numel(), blocks.dtype)
    region.begin().view(blocks.shape).copy_(blocks)
    region.publish()
    return region.reduce_block("sum").view(blocks.shape[1:])
