"""One hash seed for every process that makes a model: it determines the order of a set of strings,
and of anything made from one.

Python draws the seed at its start and does not say what it drew, so a process without a chosen one
is started again. Imports nothing heavy: it runs before anything else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["HASH_SEED", "chosen", "environment", "same_for_children", "start_again"]

_NAME = "PYTHONHASHSEED"

#: The hash seed of every process whose caller has not chosen one.
HASH_SEED = "0"


def chosen() -> str:
    """The hash seed of this process; empty if Python has drawn one, which is unknown."""
    seed = os.environ.get(_NAME, "")
    return "" if seed == "random" else seed


def environment(seed: str = HASH_SEED) -> dict[str, str]:
    """This process's environment with a hash seed."""
    return {**os.environ, _NAME: seed}


def start_again() -> None:
    """Restarts this program with the common hash seed, with its arguments and in the same process;
    returns if a seed is chosen already."""
    if not chosen():
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment())


@contextmanager
def same_for_children() -> Iterator[None]:
    """A context in which child processes have one hash seed: the caller's if it was chosen."""
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
