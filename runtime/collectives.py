"""A `Communicate` as torch.distributed calls, gloo on CPU and NCCL on CUDA, or through memory that
CPU ranks of one machine share; one flat buffer for all of its values.

How values lie in the buffer is in `packing`. The order of ranks in a group is mesh order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from planner.kernels.groups import (
    all_gather,
    all_to_all,
    is_small,
    reduce_blocks,
    scatter_blocks,
    send_to_all,
)
from planner.kernels.shared import Region, SharedMemory, shared_memory_of
from planner.program.program import Communicate
from runtime.packing import Packing

__all__ = ["Collective", "Pending", "compile_collective"]


@dataclass(slots=True)
class Pending:
    """A collective under way: the buffer that it fills, and its work (None: it is done). The work
    keeps the buffer that is sent alive."""

    buffer: Any
    work: Any


class Collective(Packing):
    """A compiled `Communicate`: `start(*values)`, then `finish(pending)`; or call it for both."""

    #: Whether it sends each rank a block of its own, instead of the same to all.
    sends_blocks = False

    def __init__(
        self,
        instruction: Communicate,
        group: dist.ProcessGroup | None,
        size: int,
        position: int,
        reusable: Sequence[bool],
    ) -> None:
        super().__init__(instruction, size, position)
        self.id = instruction.id
        self.dtype: torch.dtype = getattr(torch, instruction.dtypes[0])
        self.shared: Region | None = None
        self.group = group
        self.reusable = reusable
        self.reduce = instruction.reduce
        self.asynchronous = instruction.asynchronous
        self.frees = [source in instruction.frees for source in instruction.sources]

    def start(self, *values: Tensor) -> Pending:
        """Starts the collective; also waits for it, unless it is asynchronous."""
        raise NotImplementedError

    def finish(self, pending: Pending) -> tuple[Tensor, ...]:
        """Waits for the collective; returns its results."""
        raise NotImplementedError

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        return self.finish(self.start(*values))

    def share(self, memory: SharedMemory) -> None:
        """Makes the collective send through shared memory; synchronous collectives share
        regions."""
        sent = sum(map(math.prod, self.expanded))
        if self.uneven:
            sent = sum(map(self.room, range(len(self.expanded)))) * (
                self.size if self.sends_blocks else 1
            )
        self.shared = memory.region(self.id if self.asynchronous else "", sent, self.dtype)


class _Local(Collective):
    """A collective of any kind on a group of one rank."""

    def start(self, *values: Tensor) -> Pending:
        return Pending(values, None)

    def finish(self, pending: Pending) -> tuple[Tensor, ...]:
        return tuple(
            value.reshape(shape) for value, shape in zip(pending.buffer, self.shapes, strict=True)
        )


class _AllReduce(Collective):
    def start(self, *values: Tensor) -> Pending:
        assert self.group is not None
        if self.shared is not None:
            self.pack_into(self.shared.begin(), values)
            self.shared.publish()
            return Pending(self._room_for(values), None)
        buffer = self.pack(values)
        if is_small(buffer, self.size, self.group):
            return Pending(*send_to_all(buffer, self.size, self.group, self.asynchronous))
        if len(values) == 1 and not self.reusable[0] and buffer.data_ptr() == values[0].data_ptr():
            buffer = buffer.clone()
        op = dist.ReduceOp.MAX if self.reduce == "max" else dist.ReduceOp.SUM
        return Pending(
            buffer, dist.all_reduce(buffer, op, group=self.group, async_op=self.asynchronous)
        )

    def _room_for(self, values: Sequence[Tensor]) -> Tensor:
        """A buffer for the result: the source if it is single and may be overwritten, else a new
        one."""
        if (
            len(values) == 1
            and self.reusable[0]
            and values[0].is_contiguous()
            and not values[0].is_conj()
        ):
            return values[0].view(-1)
        return values[0].new_empty(sum(value.numel() for value in values))

    def finish(self, pending: Pending) -> tuple[Tensor, ...]:
        if self.shared is not None:
            self.shared.reduce(pending.buffer, self.reduce)
            return self.unpack(pending.buffer)
        _wait(pending)
        buffer = pending.buffer
        return self.unpack(reduce_blocks(buffer, self.reduce) if buffer.dim() == 2 else buffer)


class _AllGather(Collective):
    def start(self, *values: Tensor) -> Pending:
        assert self.group is not None
        if self.shared is not None:
            if self.uneven:
                self.shared.begin().copy_(self.pack_padded(values))
            else:
                self.pack_into(self.shared.begin(), values)
            self.shared.publish()
            return Pending(values[0].new_empty(self.size, self.shared.numel), None)
        buffer = self.pack_padded(values) if self.uneven else self.pack(values)
        return Pending(*all_gather(buffer, self.size, self.group, self.asynchronous))

    def finish(self, pending: Pending) -> tuple[Tensor, ...]:
        if self.shared is not None:
            torch.stack(self.shared.rows(), out=pending.buffer)
            self.shared.done()
        _wait(pending)
        return self.unpack_blocks(pending.buffer, self.expanded)


class _ReduceScatter(Collective):
    sends_blocks = True

    def start(self, *values: Tensor) -> Pending:
        assert self.group is not None
        if self.shared is not None:
            _send_blocks(self.shared, self.pack_blocks(values))
            return Pending(None, None)
        return Pending(
            *scatter_blocks(self.pack_blocks(values), self.group, self.reduce, self.asynchronous)
        )

    def finish(self, pending: Pending) -> tuple[Tensor, ...]:
        if self.shared is not None:
            return self.unpack(self.shared.reduce_block(self.reduce))
        _wait(pending)
        return self.unpack(reduce_blocks(pending.buffer, self.reduce))


class _AllToAll(Collective):
    sends_blocks = True

    def start(self, *values: Tensor) -> Pending:
        assert self.group is not None
        if self.shared is not None:
            _send_blocks(self.shared, self.pack_blocks(values))
            return Pending(values[0].new_empty(self.size, self.shared.numel // self.size), None)
        return Pending(*all_to_all(self.pack_blocks(values), self.group, self.asynchronous))

    def finish(self, pending: Pending) -> tuple[Tensor, ...]:
        if self.shared is not None:
            torch.stack(self.shared.blocks(), out=pending.buffer)
            self.shared.done()
        _wait(pending)
        assert self.split is not None
        sizes = [
            (*e[: self.split], e[self.split] // self.size, *e[self.split + 1 :])
            for e in self.expanded
        ]
        return self.unpack_blocks(pending.buffer, sizes)


class _Slice(Collective):
    def start(self, *values: Tensor) -> Pending:
        return Pending(values, None)

    def finish(self, pending: Pending) -> tuple[Tensor, ...]:
        assert self.split is not None
        out = []
        for i, value in enumerate(pending.buffer):
            piece = self.cut(i, value)[self.position]
            # A view would keep all of a value alive that is freed here. A strided piece is copied,
            # because ATen's native_layer_norm_backward (torch 2.13, CPU) reads strided statistics
            # as if they were contiguous.
            whole = (
                piece.clone(memory_format=torch.contiguous_format)
                if self.frees[i]
                else piece.contiguous()
            )
            out.append(whole.reshape(self.shapes[i]))
        return tuple(out)


_KINDS: dict[str, type[Collective]] = {
    "all_reduce": _AllReduce,
    "all_gather": _AllGather,
    "reduce_scatter": _ReduceScatter,
    "all_to_all": _AllToAll,
    "slice": _Slice,
}


def compile_collective(
    instruction: Communicate,
    group: dist.ProcessGroup | None,
    size: int,
    position: int,
    reusable: Sequence[bool] | None = None,
    *,
    shared: bool = True,
) -> Collective:
    """The callable for `instruction` on a group of `size` ranks, in which this rank has place
    `position`.

    `reusable[i]`: source i may be overwritten. `shared`: ranks of one machine send through shared
    memory.
    """
    kind = _Local if size == 1 else _KINDS[instruction.kind]
    assert len(set(instruction.dtypes)) == 1, (
        f"{instruction.id}: a bucket holds one dtype, got {instruction.dtypes}"
    )
    collective = kind(
        instruction, group, size, position, reusable or [False] * len(instruction.sources)
    )
    memory = (
        shared_memory_of(group)
        if shared and group is not None and size > 1 and instruction.kind != "slice"
        else None
    )
    if memory is not None:
        collective.share(memory)
    return collective


def _send_blocks(shared: Region, blocks: Tensor) -> None:
    shared.begin().view(blocks.shape).copy_(blocks)
    shared.publish()


def _wait(pending: Pending) -> None:
    if pending.work is not None:
        pending.work.wait()
        pending.work = None  # what was sent is freed before the results are unpacked
