"""One hash seed for every process that makes a model: the order of a set of texts, and of what is
made from one, follows it.

Python draws it at its start and does not say what it drew, so that a process without one is started
again. Imports nothing heavy: it is done before anything else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["HASH_SEED", "chosen", "environment", "same_for_children", "start_again"]

_NAME = "PYTHONHASHSEED"

#: What every process gets whose caller has chosen no other.
HASH_SEED = "0"


def chosen() -> str:
    """The hash seed of this process; empty if Python has drawn one, which no other process has."""
    seed = os.environ.get(_NAME, "")
    return "" if seed == "random" else seed


def environment(seed: str = HASH_SEED) -> dict[str, str]:
    """This process's environment with a hash seed."""
    return {**os.environ, _NAME: seed}


def start_again() -> None:
    """Puts this program, with its arguments, into the same process anew, with the hash seed that
    all have; returns if it has one."""
    if not chosen():
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment())


@contextmanager
def same_for_children() -> Iterator[None]:
    """Within it, processes that are started have one hash seed: the caller's, where it was
    chosen."""
    before = os.environ.get(_NAME)
    if not chosen():
        os.environ[_NAME] = HASH_SEED
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_NAME, None)
        else:
            os.environ[_NAME] = before
