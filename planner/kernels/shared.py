"""Memory that the ranks of a group on one machine share, with counters by which they wait for each
other.

gloo sends everything through sockets: what 2 ranks of a data-parallel step exchange costs them a
tenth of the step. Here a rank writes what it sends to a row of its own and counts; the others wait
for the count and read the row where it lies. A rank writes a region anew only when all have read
what stood in it, so that nothing is ever written under a reader.

The memory is a file without a name (memfd), which the group's first rank makes and the others open
through /proc: it lives as long as its processes, and no limit on /dev/shm holds for it. Waiting is
a futex. Only Linux on x86-64 has both and keeps the order of writes that the counters rely on;
anywhere else, and for a group over several machines, `shared_memory_of` gives None.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import platform
import secrets
import sys
import time
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Region", "SharedMemory", "is_gloo", "region_bytes", "shared_memory_of"]

_PAGE = mmap.ALLOCATIONGRANULARITY
#: A counter has a cache line of its own.
_LINE = 64
#: Source: Linux uapi, asm/unistd_64.h and linux/futex.h.
_SYS_FUTEX, _WAIT, _WAKE = 202, 0, 1
_EVERYONE = 2**31 - 1
#: How long a wait may last in all: gloo's default.
_TIMEOUT_S = 1800.0
#: Looks at a counter (some 70 ns each) before a rank sleeps, if every rank has a core of its own:
#: waking takes longer.
_LOOKS = 1500

_WRITTEN, _REDUCED, _READ = range(3)


class SharedMemory:
    """The shared file of one group; its ranks ask for the same regions in the same order."""

    def __init__(self, fd: int, num_ranks: int, position: int) -> None:
        self.fd, self.num_ranks, self.position = fd, num_ranks, position
        self._end = _PAGE
        self._regions: dict[tuple[str, int, torch.dtype], Region] = {}

    def region(self, name: str, numel: int, dtype: torch.dtype) -> Region:
        """A row of `numel` elements for every rank; the same region for the same name and size,
        one program after another."""
        key = (name, numel, dtype)
        if key not in self._regions:
            region = Region(self.fd, self._end, self.num_ranks, self.position, numel, dtype)
            self._end += region.nbytes
            self._regions[key] = region
        return self._regions[key]

    @property
    def nbytes(self) -> int:
        """Bytes of all regions, which all ranks hold together."""
        return sum(region.nbytes for region in self._regions.values())

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


def region_bytes(numel: int, itemsize: int, num_ranks: int) -> int:
    """Bytes of a region of `num_ranks` rows of `numel` elements: counters, rows, whole pages."""
    return _up(_head(num_ranks) + num_ranks * _row(numel, itemsize), _PAGE)


def _head(num_ranks: int) -> int:
    return 3 * num_ranks * _LINE


def _row(numel: int, itemsize: int) -> int:
    return _up(max(numel, 1) * itemsize, _LINE)


class Region:
    """Rows [ranks, numel] that all ranks read and each writes one of, round after round:
    `begin`, write `mine`, `publish`; then `rows`, read, `done`. Between the two a rank does what
    it likes."""

    def __init__(
        self, fd: int, offset: int, num_ranks: int, position: int, numel: int, dtype: torch.dtype
    ) -> None:
        self.num_ranks, self.position, self.numel = num_ranks, position, numel
        row, head = _row(numel, dtype.itemsize), _head(num_ranks)
        self.nbytes = region_bytes(numel, dtype.itemsize, num_ranks)
        os.posix_fallocate(
            fd, offset, self.nbytes
        )  # memory that is not there is an error here, not a signal at the first write
        whole = torch.frombuffer(mmap.mmap(fd, self.nbytes, offset=offset), dtype=torch.uint8)
        self._counters = whole[:head].view(torch.int32).numpy()
        self._address = whole.data_ptr()
        self._rows = [
            whole[head + r * row : head + r * row + numel * dtype.itemsize].view(dtype)
            for r in range(num_ranks)
        ]
        self._round = 0
        self._looks = _LOOKS if num_ranks <= len(os.sched_getaffinity(0)) else 0

    def begin(self) -> Tensor:
        """This rank's row [numel], to be written; waits until all ranks have read what stands
        there."""
        self._wait(_READ, self._round)
        self._round += 1
        return self._rows[self.position]

    def publish(self) -> None:
        """Says that the row is written."""
        self._count(_WRITTEN)

    def rows(self) -> list[Tensor]:
        """The rows of all ranks, in their order."""
        self._wait(_WRITTEN, self._round)
        return self._rows

    def done(self) -> None:
        """Says that this rank has read what it wanted."""
        self._count(_READ)

    def blocks(self) -> list[Tensor]:
        """Of rows that are a block for each rank, those for this one [numel / ranks]."""
        return [row.view(self.num_ranks, -1)[self.position] for row in self.rows()]

    def reduce_block(self, reduce: str) -> Tensor:
        """The sum or maximum of the blocks for this rank; this is also `done`."""
        blocks = self.blocks()
        out = torch.empty_like(blocks[0])
        _reduce(blocks, out, reduce)
        self.done()
        return out

    def reduce(self, out: Tensor, reduce: str) -> None:
        """The sum or maximum of all rows, in the order of ranks, to `out` [numel]; this is also
        `done`.

        Where many ranks have much to reduce, each reduces a part for all of them: 3 passes over the
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
        """The byte at which a counter lies."""
        return (stage * self.num_ranks + rank) * _LINE

    def _count(self, stage: int) -> None:
        at = self._at(stage, self.position)
        self._counters[at // 4] = self._round
        _futex(self._address + at, _WAKE, _EVERYONE)

    def _wait(self, stage: int, target: int) -> None:
        for rank in range(self.num_ranks):
            self._wait_for(rank, stage, target)

    def _wait_for(self, rank: int, stage: int, target: int) -> None:
        at, looks = self._at(stage, rank), self._looks
        index, counters = at // 4, self._counters
        if counters[index] >= target:
            return
        until = time.monotonic() + _TIMEOUT_S
        while (now := int(counters[index])) < target:
            if looks:
                looks -= 1
            elif time.monotonic() > until:
                raise RuntimeError(
                    f"rank {rank} of the group has sent nothing for {_TIMEOUT_S:.0f} s"
                )
            else:
                _futex(self._address + at, _WAIT, now, 1.0)


#: Up to this many bytes, reducing all of it in every rank is faster than waiting for the others'
#: parts.
_REDUCED_WHOLE = 1 << 18


def is_gloo(group: dist.ProcessGroup) -> bool:
    """Whether the group's CPU backend is gloo."""
    return dist.get_backend(group) == "gloo"


def shared_memory_of(group: dist.ProcessGroup) -> SharedMemory | None:
    """The memory that the ranks of a gloo group share, None if they do not; the first call for a
    group is made by all its ranks."""
    if group not in _MEMORIES:
        _MEMORIES[group] = _open(group) if is_gloo(group) else None
    return _MEMORIES[group]


_MEMORIES: WeakKeyDictionary[dist.ProcessGroup, SharedMemory | None] = WeakKeyDictionary()


def _open(group: dist.ProcessGroup) -> SharedMemory | None:
    """The first rank makes the file and says where it is; used if every rank finds it there,
    with what stands in it."""
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
    """Another process's open file, or -1 where that process is out of sight: on another machine,
    in another container."""
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


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_LIBC = ctypes.CDLL(None, use_errno=True)


def _futex(address: int, what: int, value: int, seconds: float = 0.0) -> None:
    """Wakes who waits at `address`, or waits there while it holds `value`; waits end early, and
    callers look again."""
    limit = ctypes.byref(_Timespec(int(seconds), int(seconds % 1 * 1e9))) if seconds else None
    _LIBC.syscall(
        ctypes.c_long(_SYS_FUTEX),
        ctypes.c_void_p(address),
        ctypes.c_int(what),
        ctypes.c_int(value),
        limit,
        None,
        ctypes.c_int(0),
    )
