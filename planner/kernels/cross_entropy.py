"""`shardwright::cross_entropy` and its backward: the summed loss over class indices, from the
logits in few passes over memory.

Softmax is never stored: backward rebuilds it from the logits and `lse`, the log of the sum of
exponentials [N]. The number of targets that count is an op of its own (`count_targets`): it reads
only the batch, so every rank can count all targets, and backward, which divides by it, waits for no
message. With a group, the classes are split over it: this rank's logits are the classes
[offset, offset + C).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from planner.kernels.groups import reduced
from planner.kernels.in_range import check_range

__all__ = ["count_targets", "cross_entropy", "cross_entropy_backward"]

#: Rows are taken in chunks of about this many elements, so that a chunk's temporaries stay in a CPU
#: core's L2 cache.
_CHUNK_CPU = 1 << 18
#: On a device, chunks only bound the temporaries.
_CHUNK_DEVICE = 1 << 27


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    group: dist.ProcessGroup | None = None,
    offset: int = 0,
    classes: int = 0,
) -> tuple[Tensor, Tensor]:
    """The sum of -log softmax(logits [N, C])[target [N]] over targets != ignore_index, and lse [N];
    `classes` is their whole number if they are split.

    Raises OutOfRange for a target that is neither a class nor ignored.
    """
    check_range("target", target, classes or logits.shape[1], ignored=ignore_index)
    lse = _local_lse(logits)
    picked = _pick(logits, target, offset)
    if group is not None:
        lse, picked = _over_group(lse, picked, group)
    kept = target != ignore_index
    return (lse - picked).masked_fill_(~kept, 0).sum(), lse


def count_targets(target: Tensor, ignore_index: int) -> Tensor:
    """The number of targets [N] that are not `ignore_index`."""
    return (target != ignore_index).sum()


def cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    lse: Tensor,
    ignore_index: int,
    offset: int | None = None,
) -> Tensor:
    """The gradient of this rank's logits: grad * (softmax(logits) - onehot(target)), zero where the
    target is ignored.

    An `offset` that is not None, 0 included, means that the classes are split.
    """
    scale = (target != ignore_index).to(lse.dtype).mul_(grad)
    out = torch.empty_like(logits)
    for rows in _chunks(logits):
        part = logits[rows].to(lse.dtype)
        softmax, factor = torch.softmax(part, 1), scale[rows]
        # A softmax over this rank's classes alone, scaled to their share of the whole.
        if offset is not None:
            factor = _lse_of(part, softmax.amax(1).log_()).sub_(lse[rows]).exp_().mul_(factor)
            softmax.masked_fill_((part.amax(1) == -torch.inf)[:, None], 0)
        torch.mul(softmax, factor[:, None], out=out[rows])
    index, inside = _local_target(target, offset or 0, logits.shape[1])
    return out.scatter_add_(1, index[:, None], (-scale * inside)[:, None].to(out.dtype))


def _local_lse(logits: Tensor) -> Tensor:
    """The log of the sum of exponentials of this rank's classes.

    torch's fused log-softmax of a chunk that stays in the cache is twice as fast as maximum,
    exponentials and sum by hand.
    """
    lse = logits.new_empty(logits.shape[0], dtype=_sum_dtype(logits))
    for rows in _chunks(logits):
        part = logits[rows].to(lse.dtype)
        lse[rows] = _lse_of(part, torch.log_softmax(part, 1).amax(1))
    return lse


def _lse_of(logits: Tensor, largest_log_softmax: Tensor) -> Tensor:
    """lse from log_softmax = logits - lse, read at the largest logit of each row; -inf for a row
    that is masked out whole, as a shard's row may be."""
    largest = logits.amax(1)
    return (largest - largest_log_softmax).masked_fill_(largest == -torch.inf, -torch.inf)


def _over_group(lse: Tensor, picked: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """lse over the classes of all ranks, and the target's logit, which only one rank has."""
    largest = reduced(lse, group, "max")
    both = reduced(torch.stack([(lse - largest).exp_(), picked]), group)
    return both[0].log_().add_(largest), both[1]


def _pick(logits: Tensor, target: Tensor, offset: int) -> Tensor:
    """logits[n, target[n] - offset], or 0 if that class is another rank's."""
    index, inside = _local_target(target, offset, logits.shape[1])
    # Not a product: 0 times a masked logit (-inf) is NaN.
    return logits.gather(1, index[:, None])[:, 0].to(_sum_dtype(logits)).masked_fill_(~inside, 0)


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
def _cross_entropy(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    return cross_entropy(logits, target, ignore_index)


@torch.library.custom_op("shardwright::count_targets", mutates_args=())
def _count_targets(target: Tensor, ignore_index: int) -> Tensor:
    return count_targets(target, ignore_index)


@torch.library.custom_op("shardwright::cross_entropy_backward", mutates_args=())
def _cross_entropy_backward(
    grad: Tensor, logits: Tensor, target: Tensor, lse: Tensor, ignore_index: int
) -> Tensor:
    return cross_entropy_backward(grad, logits, target, lse, ignore_index)


@_cross_entropy.register_fake
def _(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    dtype = _sum_dtype(logits)
    return logits.new_empty((), dtype=dtype), logits.new_empty(logits.shape[0], dtype=dtype)


@_count_targets.register_fake
def _(target: Tensor, ignore_index: int) -> Tensor:
    return target.new_empty(())


@_cross_entropy_backward.register_fake
def _(grad: Tensor, logits: Tensor, target: Tensor, lse: Tensor, ignore_index: int) -> Tensor:
    return torch.empty_like(logits)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, ctx.ignore_index = inputs
    _, lse = output
    ctx.save_for_backward(logits, target, lse)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None, None]:
    logits, target, lse = ctx.saved_tensors
    return (
        torch.ops.shardwright.cross_entropy_backward(grad, logits, target, lse, ctx.ignore_index),
        None,
        None,
    )


_cross_entropy.register_autograd(_differentiate, setup_context=_save)
