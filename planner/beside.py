"""Work on a second core: a forked process, which has all that this one has, does it and sends back what it found."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

from planner.solver.quiet import highs_has_begun

__all__ = ["beside"]

Result = TypeVar("Result")


def beside(work: Callable[[], Result]) -> Callable[[], Result]:
    """Begins `work`, and returns what waits for its result. Where there is no second core, or the process cannot do it for whatever
    reason, the work is done here when its result is asked for, and what it raises is raised here.

    For a process of our own alone: of a person's threads a forked process has none, and the locks that they hold for ever.
    """
    if not _can_fork():
        return work
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _send(work, writing)
    os.close(writing)

    def result() -> Result:
        with os.fdopen(reading, "rb") as pipe:
            sent = pipe.read()
        _, status = os.waitpid(child, 0)
        found: Result = pickle.loads(sent) if status == 0 else work()
        return found

    return result


def _can_fork() -> bool:
    """Whether there is a core for it, and HiGHS has not begun the threads that a forked process would wait for in vain."""
    return sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1 and not highs_has_begun()


def _send(work: Callable[[], object], pipe: int) -> NoReturn:
    """The forked process: ends with status 0 only if all was sent, and never by what the first process has to do at its end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is answered by the first process
    status = 1
    try:
        with os.fdopen(pipe, "wb") as out:
            out.write(pickle.dumps(work()))
        status = 0
    finally:
        os._exit(status)
