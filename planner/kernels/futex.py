"""Waiting for a counter in memory that processes share: polled for a while, then asleep on a futex.

Only on Linux on x86-64, whose order of writes the counters rely on.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

__all__ = ["LINE", "looks_for", "wait_until", "wake"]

#: Bytes of a cache line; each counter has a line of its own.
LINE = 64
#: Source: Linux uapi, asm/unistd_64.h and linux/futex.h.
_SYS_FUTEX, _WAIT, _WAKE = 202, 0, 1
_EVERYONE = 2**31 - 1
#: How long a wait may last in all: gloo's default.
_TIMEOUT_S = 1800.0
#: How often a rank polls a counter (some 70 ns each) before it sleeps, if every rank has a core of
#: its own: waking takes longer.
_LOOKS = 1500


def looks_for(num_ranks: int) -> int:
    """How often one of that many ranks polls a counter before it sleeps."""
    return _LOOKS if num_ranks <= len(os.sched_getaffinity(0)) else 0


def wait_until(counters: Any, index: int, address: int, target: int, looks: int, who: str) -> None:
    """Waits until `counters[index]`, 32 bits at `address`, is at least `target`. `who` raises it,
    for the message of the RuntimeError if that does not happen for half an hour."""
    if counters[index] >= target:
        return
    until = time.monotonic() + _TIMEOUT_S
    while (now := int(counters[index])) < target:
        if looks:
            looks -= 1
        elif time.monotonic() > until:
            raise RuntimeError(f"{who} has sent nothing for {_TIMEOUT_S:.0f} s")
        else:
            _futex(address, _WAIT, now, 1.0)


def wake(address: int) -> None:
    """Wakes all who wait for the counter at `address`."""
    _futex(address, _WAKE, _EVERYONE)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_LIBC = ctypes.CDLL(None, use_errno=True)


def _futex(address: int, what: int, value: int, seconds: float = 0.0) -> None:
    """Wakes all who wait at `address`, or waits there while it holds `value`. Waits may end early:
    callers must check again."""
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
