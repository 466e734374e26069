"""`shardwright::cross_entropy` and its backward: the summed loss over class indices, from the logits in few passes over memory.

Softmax is never stored: backward rebuilds it from the logits and `lse`, the log of the sum of exponentials [N].
With a group, the classes are split over it: this rank's logits are the classes [offset, offset + C).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["cross_entropy", "cross_entropy_backward"]

#: Rows are taken in chunks of about this many elements, so that a chunk's temporaries stay in a CPU core's L2 cache.
_CHUNK_CPU = 1 << 17
#: On a device, chunks only bound the temporaries.
_CHUNK_DEVICE = 1 << 27


def cross_entropy(
    logits: Tensor, target: Tensor, ignore_index: int, group: dist.ProcessGroup | None = None, offset: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of -log softmax(logits [N, C])[target [N]] over targets != ignore_index, their number, and lse [N]."""
    logits_max, exp_sum = _exp_sums(logits, group)
    picked = _pick(logits, target, offset)
    if group is not None:
        both = torch.stack([exp_sum, picked])
        dist.all_reduce(both, group=group)
        exp_sum, picked = both
    lse = exp_sum.log_().add_(logits_max)
    kept = target != ignore_index
    return (lse - picked).mul_(kept).sum(), kept.sum().to(lse.dtype), lse


def cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    lse: Tensor,
    ignore_index: int,
    group: dist.ProcessGroup | None = None,
    offset: int = 0,
) -> Tensor:
    """The gradient of this rank's logits: grad * (softmax(logits) - onehot(target)), zero where the target is ignored.

    It needs nothing of the other ranks; `group` is taken so that it is called as `cross_entropy` is.
    """
    scale = (target != ignore_index).to(lse.dtype).mul_(grad)
    out = torch.empty_like(logits)
    for rows in _chunks(logits):
        softmax = torch.sub(logits[rows], lse[rows, None]).exp_()
        torch.mul(softmax, scale[rows, None], out=out[rows])
    index, inside = _local_target(target, offset, logits.shape[1])
    return out.scatter_add_(1, index[:, None], (-scale * inside)[:, None].to(out.dtype))


def _exp_sums(logits: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """The maximum of each row over the whole group, and this rank's sum of exp(logits - maximum)."""
    dtype = _sum_dtype(logits)
    if group is not None:
        logits_max = logits.amax(1).to(dtype)
        dist.all_reduce(logits_max, dist.ReduceOp.MAX, group=group)
    else:
        logits_max = logits.new_empty(logits.shape[0], dtype=dtype)
    exp_sum = torch.empty_like(logits_max)
    for rows in _chunks(logits):
        part = logits[rows].to(dtype)
        if group is None:
            torch.amax(part, 1, out=logits_max[rows])
        torch.sum(torch.sub(part, logits_max[rows, None]).exp_(), 1, out=exp_sum[rows])
    return logits_max, exp_sum


def _pick(logits: Tensor, target: Tensor, offset: int) -> Tensor:
    """logits[n, target[n] - offset], or 0 where that class is not this rank's."""
    index, inside = _local_target(target, offset, logits.shape[1])
    return logits.gather(1, index[:, None])[:, 0].to(_sum_dtype(logits)).mul_(inside)


def _local_target(target: Tensor, offset: int, num_classes: int) -> tuple[Tensor, Tensor]:
    local = target - offset
    inside = (local >= 0) & (local < num_classes)
    return local.mul_(inside), inside


def _sum_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _chunks(logits: Tensor) -> list[slice]:
    size = _CHUNK_CPU if logits.device.type == "cpu" else _CHUNK_DEVICE
    step = max(1, size // max(1, logits.shape[1]))
    return [slice(at, at + step) for at in range(0, logits.shape[0], step)]


@torch.library.custom_op("shardwright::cross_entropy", mutates_args=())
def _cross_entropy(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    return cross_entropy(logits, target, ignore_index)


@torch.library.custom_op("shardwright::cross_entropy_backward", mutates_args=())
def _cross_entropy_backward(grad: Tensor, logits: Tensor, target: Tensor, lse: Tensor, ignore_index: int) -> Tensor:
    return cross_entropy_backward(grad, logits, target, lse, ignore_index)


@_cross_entropy.register_fake
def _(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _sum_dtype(logits)
    return logits.new_empty((), dtype=dtype), logits.new_empty((), dtype=dtype), logits.new_empty(logits.shape[0], dtype=dtype)


@_cross_entropy_backward.register_fake
def _(grad: Tensor, logits: Tensor, target: Tensor, lse: Tensor, ignore_index: int) -> Tensor:
    return torch.empty_like(logits)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, ctx.ignore_index = inputs
    _, count, lse = output
    ctx.save_for_backward(logits, target, lse)
    ctx.mark_non_differentiable(count, lse)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None, None]:
    logits, target, lse = ctx.saved_tensors
    return torch.ops.shardwright.cross_entropy_backward(grad, logits, target, lse, ctx.ignore_index), None, None


_cross_entropy.register_autograd(_differentiate, setup_context=_save)
