"""The buffers of one collective, as allocated and freed by `runtime.collectives`: packed, received,
unpacked.

Communicate, ranks -> Buffers, in bytes. A value that is alone in its buffer, split along its
leading sub-dim, is sent and received without a copy. gloo reduces and scatters by an all_to_all,
and sends few bytes to everyone (`planner.kernels.groups`). Ranks that share memory
(`planner.kernels.shared`) copy their messages there, outside their own allocators.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cost_models.memory import dtype_bytes
from planner.kernels.groups import SMALL_BYTES
from planner.kernels.shared import region_bytes
from planner.program.copies import is_uneven, leads
from planner.program.program import Communicate, Program

__all__ = ["Buffers", "buffers_of", "shared_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffers:
    """Bytes on one rank. `packing` is held only while values are packed; `sent` from the start to
    the end of the collective (0: the source itself is sent; None: nothing is sent). `received` is a
    buffer of its own (0: the one that was sent). Results are views of the received buffer or, if
    `unpacked`, copies."""

    packing: int = 0
    sent: int | None = 0
    received: int | None = 0
    unpacked: bool = False


def buffers_of(message: Communicate, ranks: int, backend: str, *, in_place: bool) -> Buffers:
    """The buffers of a collective of `ranks` ranks over a `Program.backend`; `in_place`: a single
    source may be overwritten."""
    rows, whole = _rooms(message, ranks), sum(map(_nbytes, message.expanded, message.dtypes))
    if backend == "shared":
        return _shared(message, rows, whole, ranks, in_place)
    if message.kind == "all_reduce":
        return _all_reduce(message, whole, ranks, backend, in_place)
    if message.kind == "all_gather":
        return _all_gather(message, rows, ranks, backend)
    blocks = ranks * rows
    split = _split_buffers(message, blocks)
    if message.kind == "all_to_all":
        return Buffers(
            packing=split.packing,
            sent=split.sent,
            received=blocks,
            unpacked=not _joins_without_copy(message),
        )
    gloo = backend == "gloo"
    return Buffers(
        packing=split.packing, sent=split.sent, received=blocks if gloo else rows, unpacked=gloo
    )


def _shared(message: Communicate, rows: int, whole: int, ranks: int, in_place: bool) -> Buffers:
    """The buffers of a collective through shared memory: packed values are copied there and then
    freed."""
    if message.kind == "all_reduce":
        alone = in_place and len(message.sources) == 1
        return Buffers(received=0) if alone else Buffers(sent=None, received=whole)
    if message.kind == "all_gather":
        views = _joins_without_copy(message)
        return Buffers(
            packing=rows if is_uneven(message) else 0,
            sent=None,
            received=ranks * rows,
            unpacked=not views,
        )
    split = _split_buffers(message, ranks * rows)
    packing = split.packing + (split.sent or 0)
    if message.kind == "reduce_scatter":
        return Buffers(packing=packing, sent=None, received=None, unpacked=True)
    return Buffers(
        packing=packing, sent=None, received=ranks * rows, unpacked=not _joins_without_copy(message)
    )


def shared_bytes(program: Program) -> int:
    """Bytes per rank of the memory through which the ranks of one machine send: a row for each
    asynchronous message, and one of each size for the synchronous ones (`runtime.collectives`).
    Leaves out the few bytes that kernels send themselves. 0 if the ranks do not share memory."""
    if program.backend != "shared":
        return 0
    regions: dict[tuple[tuple[int, ...], str, int, str], int] = {}
    for message in program.written:
        if isinstance(message, Communicate) and message.kind != "slice":
            ranks = math.prod(program.mesh.sizes[axis] for axis in message.axes)
            numel, dtype = _sent(message, ranks), message.dtypes[0]
            key = (message.axes, message.id if message.asynchronous else "", numel, dtype)
            if ranks > 1:
                regions[key] = region_bytes(numel, dtype_bytes(dtype), ranks) // ranks
    return sum(regions.values())


def _sent(message: Communicate, ranks: int) -> int:
    """The number of elements in a rank's row: those of its values or, if the ranks' pieces differ
    in size, of the largest."""
    if not is_uneven(message):
        return sum(map(math.prod, message.expanded))
    blocks = ranks if message.kind in ("reduce_scatter", "all_to_all") else 1
    return blocks * _rooms(message, ranks) // dtype_bytes(message.dtypes[0])


def _all_reduce(
    message: Communicate, whole: int, ranks: int, backend: str, in_place: bool
) -> Buffers:
    many = len(message.sources) > 1
    if _is_small(whole, ranks, backend):
        return Buffers(
            packing=whole if many else 0, sent=ranks * whole, received=ranks * whole, unpacked=True
        )
    return Buffers(sent=0 if in_place and not many else whole)


def _all_gather(message: Communicate, rows: int, ranks: int, backend: str) -> Buffers:
    packed = rows if len(message.sources) > 1 or is_uneven(message) else 0
    views = _joins_without_copy(message)
    if _is_small(rows, ranks, backend):
        return Buffers(packing=packed, sent=ranks * rows, received=ranks * rows, unpacked=not views)
    return Buffers(sent=packed, received=ranks * rows, unpacked=not views)


def _split_buffers(message: Communicate, blocks: int) -> Buffers:
    """Bytes packed if every rank is sent a block of its own."""
    assert message.split is not None
    if is_uneven(message):
        return Buffers(packing=blocks, sent=blocks)
    strided = sum(
        _nbytes(sizes, dtype)
        for sizes, dtype in zip(message.expanded, message.dtypes, strict=True)
        if not leads(sizes, message.split)
    )
    if len(message.sources) > 1:
        return Buffers(packing=strided, sent=blocks)
    return Buffers(sent=strided)


def _is_small(nbytes: int, ranks: int, backend: str) -> bool:
    return backend == "gloo" and nbytes * ranks <= SMALL_BYTES


def _joins_without_copy(message: Communicate) -> bool:
    """Whether the received buffer, rank after rank, already is the result."""
    assert message.gather is not None
    return (
        len(message.sources) == 1
        and not is_uneven(message)
        and leads(message.expanded[0], message.gather)
    )


def _rooms(message: Communicate, ranks: int) -> int:
    """Bytes of a row of the buffer: the sum, over values, of the largest piece that a rank sends to
    another."""
    total = 0
    for i, sizes in enumerate(message.expanded):
        room = list(sizes)
        if message.gather is not None:
            room[message.gather] = max(
                _pieces(message.gather_pieces, i), default=room[message.gather]
            )
        if message.split is not None:
            room[message.split] = max(
                _pieces(message.split_pieces, i), default=room[message.split] // ranks
            )
        total += _nbytes(room, message.dtypes[i])
    return total


def _pieces(pieces: Sequence[tuple[int, ...]], value: int) -> tuple[int, ...]:
    return pieces[value] if pieces else ()


def _nbytes(sizes: Sequence[int], dtype: str) -> int:
    return math.prod(sizes) * dtype_bytes(dtype)
