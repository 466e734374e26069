"""Work on a second core: a forked process, with all the state of this one, takes its share of the
tasks and sends back their results.

Which tasks these are may be decided later, by a number: a process that waits for it is forked
before HiGHS starts threads, which a forked process would not have.
"""

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
from typing import Generic, NoReturn, TypeVar

from planner.solver.relax.quiet import highs_has_begun

__all__ = ["Beside", "beside"]

Result = TypeVar("Result")

#: Linux's prctl option: the signal that a process gets when the one that forked it ends.
_SET_PARENT_DEATH_SIGNAL = 1

#: The bytes of a number sent to a waiting process.
_WORD = 8


@contextmanager
def beside(
    tasks: Callable[[int], Sequence[Callable[[], Result]]],
    patience: Callable[[], float],
    *,
    own_process: bool = True,
    waiting: int = 1,
) -> Iterator[Beside[Result]]:
    """Yields what does the tasks of a number in another process, of which `waiting` are forked. The
    other processes end with the context, or with this process.

    Only for a process of our own (`own_process`): a forked process does not have the user's threads,
    but keeps the locks that they held, for ever.
    """
    forked: list[_Process[Result]] = []
    if own_process and _can_fork():
        for _ in range(waiting):
            forked.append(_Process(tasks, forked))
    found = Beside(tasks, patience, forked)
    try:
        yield found
    finally:
        for process in forked:
            process.end()


class Beside(Generic[Result]):
    """The tasks of one number at a time, in another process. A task is done in this process, and
    its error raised here, if there is no other process, it fails for any reason, or it has not
    finished `patience()` seconds after no task is left to share."""

    def __init__(
        self,
        tasks: Callable[[int], Sequence[Callable[[], Result]]],
        patience: Callable[[], float],
        waiting: Sequence[_Process[Result]],
    ) -> None:
        self._tasks, self._patience, self._waiting = tasks, patience, list(waiting)
        self._at_work: tuple[int, _Process[Result]] | None = None

    def begin(self, number: int) -> None:
        """Starts the tasks of a number; those of another number end unfinished. The later tasks are
        expected to take longer: the last is started first."""
        if (self._at_work is not None and self._at_work[0] == number) or not self._waiting:
            return
        if self._at_work is not None:
            self._at_work[1].end()
        process = self._waiting.pop(0)
        self._at_work = number, process
        process.begin(number, len(self._tasks(number)))

    def results(self, number: int) -> tuple[Result, ...]:
        """The results of all tasks of a number; the two processes share those that none has
        begun."""
        self.begin(number)
        tasks, done = self._tasks(number), dict[int, Result]()
        if self._at_work is not None and self._at_work[0] == number:
            process, self._at_work = self._at_work[1], None
            done = {at: tasks[at]() for at in process.left()}
            done |= process.results(time.monotonic() + self._patience())
        return tuple(done[at] if at in done else task() for at, task in enumerate(tasks))


class _Process(Generic[Result]):
    """A forked process that waits for the number of its tasks."""

    def __init__(
        self,
        tasks: Callable[[int], Sequence[Callable[[], Result]]],
        others: Sequence[_Process[Result]],
    ) -> None:
        going, self._go = os.pipe()
        self._queue, self._fill = os.pipe()
        self._reading, writing = os.pipe()
        self._open = {self._go, self._queue, self._fill, self._reading}
        this = os.getpid()
        self._child = os.fork()
        if self._child == 0:
            for end in {self._go, self._fill, self._reading}.union(*(o._open for o in others)):
                os.close(end)
            _send(lambda: _done(tasks, going, self._queue), writing, this)
        os.close(going)
        os.close(writing)

    def begin(self, number: int, num_tasks: int) -> None:
        """Starts the tasks of a number."""
        with suppress(BrokenPipeError):  # the process has failed
            os.write(self._go, number.to_bytes(_WORD))
        # A number read by one process is read by no other: the last first.
        os.write(self._fill, bytes(reversed(range(num_tasks - 1))))
        self._close(self._fill)

    def left(self) -> Iterator[int]:
        """The tasks that no process has started, until there are none."""
        return _taken(self._queue)

    def results(self, deadline: float) -> dict[int, Result]:
        """The results of this process, by task; none if it fails or has not sent them before the
        deadline. Ends it."""
        sent = _received(self._reading, deadline)
        status = self.end(at_once=sent is None)
        return pickle.loads(sent) if status == 0 and sent is not None else {}

    def end(self, *, at_once: bool = True) -> int:
        """Waits for the process, which has closed its pipe, or kills it if `at_once`. Returns its
        status."""
        if self._child == 0:
            return 0
        for end in list(self._open):
            self._close(end)
        if at_once:
            with suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
        child, self._child = self._child, 0
        return os.waitpid(child, 0)[1]

    def _close(self, end: int) -> None:
        self._open.remove(end)
        os.close(end)


def _done(
    tasks: Callable[[int], Sequence[Callable[[], Result]]], going: int, queue: int
) -> dict[int, Result]:
    """Waits for a number, and does its tasks: the last, and those that no process has started."""
    word = os.read(going, _WORD)
    if not word:
        return {}
    mine = tasks(int.from_bytes(word))
    return {at: mine[at]() for at in itertools.chain([len(mine) - 1], _taken(queue)) if mine}


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
