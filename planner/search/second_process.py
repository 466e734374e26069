"""Work on a second core: a forked process, with all the state of this one, takes its share of the
tasks and sends back their results."""

from __future__ import annotations

import ctypes
import itertools
import os
import pickle
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn, TypeVar

from planner.solver.relax.quiet import highs_has_begun

__all__ = ["beside"]

Result = TypeVar("Result")

#: Linux's prctl option: the signal that a process gets when the one that forked it ends.
_SET_PARENT_DEATH_SIGNAL = 1


@contextmanager
def beside(
    tasks: Sequence[Callable[[], Result]],
    patience: Callable[[], float],
    *,
    own_process: bool = True,
) -> Iterator[Callable[[], tuple[Result, ...]]]:
    """Starts the tasks in a forked process; yields a function that waits for their results. The
    later tasks are expected to take longer: the last is started first, and once the results are
    asked for, both processes share the rest. A task is done in this process, and its error raised
    here, if this is not our own process, there is no second core, the other process fails for any
    reason, or it has not finished `patience()` seconds after no task is left to share. The other
    process ends with the context, or with this process.

    Only for a process of our own: a forked process does not have the user's threads, but keeps the
    locks that they held, for ever.
    """
    if not own_process or not tasks or not _can_fork():
        yield lambda: tuple(task() for task in tasks)
        return
    this, queue = os.getpid(), _queue(range(len(tasks) - 1))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        numbers = itertools.chain([len(tasks) - 1], _taken(queue))
        _send(lambda: {number: tasks[number]() for number in numbers}, writing, this)
    os.close(writing)
    ended = False

    def results() -> tuple[Result, ...]:
        nonlocal ended
        done = {number: tasks[number]() for number in _taken(queue)}
        sent = _received(reading, time.monotonic() + patience())
        ended = True
        if _end(child, at_once=sent is None) == 0 and sent is not None:
            done |= pickle.loads(sent)
        return tuple(done[n] if n in done else task() for n, task in enumerate(tasks))

    try:
        yield results
    finally:
        os.close(reading)
        os.close(queue)
        if not ended:
            _end(child, at_once=True)


def _queue(numbers: range) -> int:
    """The reading end of a pipe of numbers, one byte each, the last one first: a number read by one
    process is read by no other."""
    taking, giving = os.pipe()
    os.write(giving, bytes(reversed(numbers)))
    os.close(giving)
    return taking


def _taken(queue: int) -> Iterator[int]:
    """The numbers of tasks that no process has started, until there are none."""
    while number := os.read(queue, 1):
        yield number[0]


def _can_fork() -> bool:
    """Whether there is a second core, and HiGHS has not started threads, for which a forked process
    would wait in vain."""
    return sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1 and not highs_has_begun()


def _received(pipe: int, deadline: float) -> bytes | None:
    """All bytes sent until the other end is closed; None if that takes until after `deadline`."""
    parts: list[bytes] = []
    while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(pipe, 1 << 20)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return None


def _end(child: int, *, at_once: bool) -> int:
    """Waits for a child that has closed its pipe, or kills it if `at_once`. Returns its status."""
    if at_once:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _send(work: Callable[[], object], pipe: int, parent: int) -> NoReturn:
    """Runs in the forked process: it exits with status 0 only if everything was sent, and without
    the exit handlers of the first process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the first process handles Ctrl-C
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    status = 1
    try:
        if os.getppid() == parent:  # else the parent ended before the prctl call
            with os.fdopen(pipe, "wb") as out:
                out.write(pickle.dumps(work()))
            status = 0
    finally:
        os._exit(status)
