"""HiGHS prints a banner to the process's stdout when the first solver object is made, whatever
its options. Here one is made with stdout on the null device, so that `--json` prints one object
and nothing else."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

__all__ = ["highs_has_begun", "silence_banner"]


@cache
def silence_banner() -> None:
    """Makes a HiGHS object with file descriptor 1 on the null device."""
    import highspy

    sys.stdout.flush()
    libc = ctypes.CDLL(None)
    saved, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        highspy.Highs()  # type: ignore[no-untyped-call]
        libc.fflush(None)
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)


def highs_has_begun() -> bool:
    """Whether this process has made a HiGHS object, so that HiGHS may have started threads."""
    return silence_banner.cache_info().currsize > 0
