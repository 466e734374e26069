"""Work on a second core: a forked process, which has all that this one has, takes its share of the
tasks and sends back what it found."""

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

#: Linux's prctl: the signal that a process gets when the one that forked it ends, however it ends.
_SET_PARENT_DEATH_SIGNAL = 1


@contextmanager
def beside(
    tasks: Sequence[Callable[[], Result]],
    patience: Callable[[], float],
    *,
    own_process: bool = True,
) -> Iterator[Callable[[], tuple[Result, ...]]]:
    """Begins the tasks, of which the later ones take longer, and gives what waits for their
    results. They are begun from the last, and once they are asked for, both processes share what
    is left. If this is no process of our own, or there is no second core, or the other process
    cannot do a task for whatever reason, or has not done it `patience` seconds after there is none
    left to share, it is done here, and what it raises is raised here. The other process ends with
    the context, and with this process.

    For a process of our own alone: of a person's threads a forked process has none, and the locks
    that they hold for ever.
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
    """The end of a pipe of numbers, a byte each, the last one first: what one process has read,
    no other reads."""
    taking, giving = os.pipe()
    os.write(giving, bytes(reversed(numbers)))
    os.close(giving)
    return taking


def _taken(queue: int) -> Iterator[int]:
    """The numbers of tasks that nobody has begun, until there are none."""
    while number := os.read(queue, 1):
        yield number[0]


def _can_fork() -> bool:
    """Whether there is a core for it, and HiGHS has not begun the threads that a forked process
    would wait for in vain."""
    return sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1 and not highs_has_begun()


def _received(pipe: int, deadline: float) -> bytes | None:
    """All that is sent until the other end is closed, None where that takes longer."""
    parts: list[bytes] = []
    while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(pipe, 1 << 20)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return None


def _end(child: int, *, at_once: bool) -> int:
    """Waits for a process that has closed its pipe, or kills it; its status."""
    if at_once:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _send(work: Callable[[], object], pipe: int, parent: int) -> NoReturn:
    """The forked process: ends with status 0 only if all was sent, and never by what the first
    process has to do at its end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is answered by the first process
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    status = 1
    try:
        if os.getppid() == parent:  # else it ended before we said that we would end with it
            with os.fdopen(pipe, "wb") as out:
                out.write(pickle.dumps(work()))
            status = 0
    finally:
        os._exit(status)
