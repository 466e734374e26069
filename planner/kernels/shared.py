"""Memory that the ranks of a group on one machine share, with counters by which they wait for each
other.

gloo sends everything through sockets, which costs 2 ranks of a data-parallel step a tenth of the
step. Here a rank writes what it sends to a row of its own and raises a counter; the others wait for
the counter and read the row in place. A rank overwrites a region only after all ranks have read it,
so nothing is ever written under a reader.

The memory is an anonymous file (memfd), which the group's first rank makes and the others open
through /proc. It lives as long as its processes, and is not subject to a limit on /dev/shm. Ranks
wait on a futex. Only Linux on x86-64 has both and keeps the order of writes that the counters rely
on; anywhere else, and for a group over several machines, `shared_memory_of` returns None.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import platform
import secrets
import sys
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from planner.kernels.futex import LINE, looks_for, wait_until, wake

__all__ = [
    "Region",
    "SharedMemory",
    "is_gloo",
    "region_bytes",
    "row_bytes",
    "shared_memory_of",
    "up_to_pages",
]

_PAGE = mmap.ALLOCATIONGRANULARITY

_WRITTEN, _REDUCED, _READ = range(3)


class SharedMemory:
    """The shared file of one group; its ranks ask for the same regions in the same order."""

    def __init__(self, fd: int, num_ranks: int, position: int) -> None:
        self.fd, self.num_ranks, self.position = fd, num_ranks, position
        self._end = _PAGE
        self._regions: dict[tuple[str, int, torch.dtype], Region] = {}

    def region(self, name: str, numel: int, dtype: torch.dtype) -> Region:
        """A region with a row of `numel` elements for every rank. The same name and size give the
        same region, to one program after another."""
        key = (name, numel, dtype)
        if key not in self._regions:
            nbytes = region_bytes(numel, dtype.itemsize, self.num_ranks)
            offset = self.reserve(nbytes)
            self._regions[key] = Region(
                self.fd, offset, self.num_ranks, self.position, numel, dtype
            )
        return self._regions[key]

    def reserve(self, nbytes: int) -> int:
        """The offset of so many bytes, whole pages, for something else than a region. All ranks
        reserve the same, in the same order."""
        offset = self._end
        # If memory runs out, this raises an error; else the first write would be a fatal signal.
        os.posix_fallocate(self.fd, offset, nbytes)
        self._end += nbytes
        return offset

    @property
    def nbytes(self) -> int:
        """Bytes of all regions and of what else is reserved, which all ranks hold together."""
        return self._end - _PAGE

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


def region_bytes(numel: int, itemsize: int, num_ranks: int) -> int:
    """Bytes of a region of `num_ranks` rows of `numel` elements: counters and rows, rounded up to
    whole pages."""
    return up_to_pages(_head(num_ranks) + num_ranks * row_bytes(numel, itemsize))


def _head(num_ranks: int) -> int:
    return 3 * num_ranks * LINE


def row_bytes(numel: int, itemsize: int) -> int:
    """Bytes of a row of so many elements, in whole cache lines."""
    return _up(max(numel, 1) * itemsize, LINE)


class Region:
    """Rows [ranks, numel]: all ranks read them, each writes its own. A round is `begin`, write
    `mine`, `publish`; then `rows`, read, `done`. Between `publish` and `rows` a rank may do
    anything else."""

    def __init__(
        self, fd: int, offset: int, num_ranks: int, position: int, numel: int, dtype: torch.dtype
    ) -> None:
        self.num_ranks, self.position, self.numel = num_ranks, position, numel
        row, head = row_bytes(numel, dtype.itemsize), _head(num_ranks)
        self.nbytes = region_bytes(numel, dtype.itemsize, num_ranks)
        whole = torch.frombuffer(mmap.mmap(fd, self.nbytes, offset=offset), dtype=torch.uint8)
        self._counters = whole[:head].view(torch.int32).numpy()
        self._address = whole.data_ptr()
        self._rows = [
            whole[head + r * row : head + r * row + numel * dtype.itemsize].view(dtype)
            for r in range(num_ranks)
        ]
        self._round = 0
        self._looks = looks_for(num_ranks)

    def begin(self) -> Tensor:
        """This rank's row [numel], to be written; waits until all ranks have read its last
        contents."""
        self._wait(_READ, self._round)
        self._round += 1
        return self._rows[self.position]

    def publish(self) -> None:
        """Signals that this rank's row is written."""
        self._count(_WRITTEN)

    def rows(self) -> list[Tensor]:
        """The rows of all ranks, in rank order; waits until all are written."""
        self._wait(_WRITTEN, self._round)
        return self._rows

    def done(self) -> None:
        """Signals that this rank has read all that it needs."""
        self._count(_READ)

    def blocks(self) -> list[Tensor]:
        """If each row is one block per rank, this rank's blocks [numel / ranks] of all rows."""
        return [row.view(self.num_ranks, -1)[self.position] for row in self.rows()]

    def reduce_block(self, reduce: str) -> Tensor:
        """The sum or maximum of this rank's blocks; also calls `done`."""
        blocks = self.blocks()
        out = torch.empty_like(blocks[0])
        _reduce(blocks, out, reduce)
        self.done()
        return out

    def reduce(self, out: Tensor, reduce: str) -> None:
        """Writes the sum or maximum of all rows, in rank order, to `out` [numel]; also calls
        `done`.

        If many ranks have much to reduce, each reduces a part for all of them: 3 passes over the
        rows of one rank, not of all.
        """
        rows = self.rows()
        if self.num_ranks == 2 or out.nbytes <= _REDUCED_WHOLE:
            _reduce(rows, out, reduce)
            self.done()
            return
        ends = [self.numel * rank // self.num_ranks for rank in range(self.num_ranks + 1)]
        pieces = [slice(start, end) for start, end in itertools.pairwise(ends)]
        mine = pieces[self.position]
        _reduce([row[mine] for row in rows], out[mine], reduce)
        rows[self.position][mine] = out[mine]
        self._count(_REDUCED)
        for rank, piece in enumerate(pieces):
            if rank != self.position:
                self._wait_for(rank, _REDUCED, self._round)
                out[piece] = rows[rank][piece]
        self.done()

    def _at(self, stage: int, rank: int) -> int:
        """The byte offset of a counter."""
        return (stage * self.num_ranks + rank) * LINE

    def _count(self, stage: int) -> None:
        at = self._at(stage, self.position)
        self._counters[at // 4] = self._round
        wake(self._address + at)

    def _wait(self, stage: int, target: int) -> None:
        for rank in range(self.num_ranks):
            self._wait_for(rank, stage, target)

    def _wait_for(self, rank: int, stage: int, target: int) -> None:
        at = self._at(stage, rank)
        who = f"rank {rank} of the group"
        wait_until(self._counters, at // 4, self._address + at, target, self._looks, who)


#: Up to this many bytes, it is faster if every rank reduces everything than to wait for the others'
#: parts.
_REDUCED_WHOLE = 1 << 18


def is_gloo(group: dist.ProcessGroup) -> bool:
    """Whether the group's CPU backend is gloo."""
    return dist.get_backend(group) == "gloo"


def shared_memory_of(group: dist.ProcessGroup) -> SharedMemory | None:
    """The memory that the ranks of a gloo group share; None if they share none. All ranks of a
    group must make its first call together."""
    if group not in _MEMORIES:
        _MEMORIES[group] = _open(group) if is_gloo(group) else None
    return _MEMORIES[group]


_MEMORIES: WeakKeyDictionary[dist.ProcessGroup, SharedMemory | None] = WeakKeyDictionary()


def _open(group: dist.ProcessGroup) -> SharedMemory | None:
    """The file, made and announced by the first rank; None unless every rank can open it and finds
    the same token in it."""
    position = dist.get_rank(group)
    fd, token = -1, b""
    if position == 0 and _is_supported():
        fd, token = os.memfd_create("shardwright"), secrets.token_bytes(16)
        os.pwrite(fd, token, 0)
    place = [(os.getpid(), fd, token)]
    dist.broadcast_object_list(place, group_src=0, group=group)
    if position and place[0][1] >= 0 and _is_supported():
        fd = _opened(*place[0])
    found = torch.tensor(int(fd >= 0))
    dist.all_reduce(found, dist.ReduceOp.MIN, group=group)
    if found:
        return SharedMemory(fd, dist.get_world_size(group), position)
    if fd >= 0:
        os.close(fd)
    return None


def _is_supported() -> bool:
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _opened(pid: int, number: int, token: bytes) -> int:
    """A descriptor of another process's open file, or -1 if that process is out of reach: on
    another machine, or in another container."""
    try:
        fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1
    if os.pread(fd, len(token), 0) == token:
        return fd
    os.close(fd)
    return -1


def _reduce(rows: list[Tensor], out: Tensor, reduce: str) -> None:
    first, second, *rest = rows
    join = torch.maximum if reduce == "max" else torch.add
    join(first, second, out=out)
    for row in rest:
        join(out, row, out=out)


def up_to_pages(size: int) -> int:
    """Bytes rounded up to whole pages."""
    return _up(size, _PAGE)


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
