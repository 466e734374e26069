"""Starts the ranks of a run on this machine with torch's elastic agent, and ends all of them when
one fails.

Each rank has a pipe of its own to this process. A shared queue would have a lock, and a rank killed
while it holds the lock would leave all others waiting.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cost_models.errors import BadValue, RunFailed, UserError
from planner.state.hash_seed import same_for_children
from runtime.progress import FOLDER, progress_of

__all__ = ["Emit", "launch"]

#: What a rank calls to send an event to the process that launched it.
Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class _Failed:
    """The message of a rank that fails; `mistake` is the error's kind if it is a mistake of the
    user's and not a failure of the run."""

    rank: int
    message: str
    traceback: str
    mistake: type[UserError] | None

    def error(self) -> UserError:
        """The error for the caller: a user's mistake as a single process would raise it, else which
        rank failed, and how."""
        if self.mistake is not None:
            return self.mistake(self.message)
        return RunFailed(f"rank {self.rank}: {self.message.removeprefix(f'rank {self.rank}: ')}")


def launch(
    function: str,
    num_ranks: int,
    payload: Any = None,
    *,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> list[Any]:
    """The results of `function` ("module:name", called as `name(payload, emit)`) on `num_ranks`
    processes, by rank.

    `on_event` is called, in a thread of this process, with the events that ranks emit. The
    processes find each other by the usual environment (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)
    on a free port. Each has one thread, and all have the same hash seed. Raises `RunFailed` with
    the rank and the error of the process that failed first, or the user's mistake if it was one;
    the others are ended.
    """
    if num_ranks < 1:
        raise BadValue(f"number of ranks is {num_ranks}: give at least 1")
    pipes = [
        torch.multiprocessing.get_context("spawn").Pipe(duplex=False) for _ in range(num_ranks)
    ]
    readers, writers = [reader for reader, _ in pipes], [writer for _, writer in pipes]
    errors: list[UserError] = []
    with (
        _signals(),
        tempfile.TemporaryDirectory(prefix="shardwright-") as logs,
        _one_thread(),
        same_for_children(),
        _quiet(),
    ):
        try:
            with _reader(readers, writers, on_event, errors), _interrupts_held():
                results = elastic_launch(_config(num_ranks, logs), _rank)(
                    function, payload, writers, logs
                )
        except ChildFailedError as error:
            raise _first(error, errors, logs) from None
        except SignalException:
            raise KeyboardInterrupt from None
    return [results[rank] for rank in range(num_ranks)]


def _config(num_ranks: int, logs: str) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
        logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=Std.ERR),
    )


def _rank(function: str, payload: Any, writers: list[Connection], logs: str) -> Any:
    """Runs in each process. It reports its own error before its exit makes the others fail too."""
    torch.set_num_threads(1)
    os.environ[FOLDER] = logs
    emit = writers[int(os.environ["RANK"])].send
    module, name = function.split(":")
    # Ctrl-C ends it silently; an exception in torch's C++ would abort.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Blocked since the start: see `_interrupts_held`.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        return getattr(importlib.import_module(module), name)(payload, emit)
    except Exception as error:
        mistake = (
            type(error)
            if isinstance(error, UserError) and not isinstance(error, RunFailed)
            else None
        )
        emit(_Failed(int(os.environ["RANK"]), _one_line(error), traceback.format_exc(), mistake))
        raise


def _one_line(error: Exception) -> str:
    text = next(iter(str(error).strip().splitlines()), "")
    return text if isinstance(error, UserError) and text else f"{type(error).__name__}: {text}"


def _first(
    agent: ChildFailedError, told: list[UserError], logs: str
) -> UserError | KeyboardInterrupt:
    """The cause of a failure: the process ended by a signal, which cannot report its error; else
    the error that was reported first. On Ctrl-C, a rank may die before this process has got the
    signal."""
    for rank, failure in agent.failures.items():
        if failure.exitcode == -signal.SIGINT:
            return KeyboardInterrupt()
        if failure.exitcode < 0:
            return RunFailed(
                f"{_at(logs, rank)}: ended by {signal.Signals(-failure.exitcode).name}; SIGKILL "
                "usually means that memory ran out"
            )
    if told:
        return told[0]
    rank, failure = agent.get_first_failure()
    return RunFailed(f"{_at(logs, rank)}: exit code {failure.exitcode}")


def _at(logs: str, rank: int) -> str:
    """A rank and, in a pipeline, what it did last."""
    return progress_of(logs, rank) or f"rank {rank}"


@contextlib.contextmanager
def _reader(
    readers: list[Connection],
    writers: list[Connection],
    on_event: Callable[[dict[str, Any]], None] | None,
    errors: list[UserError],
) -> Iterator[None]:
    """A context in which a thread reads what ranks send, until all writing ends are closed: the
    ranks' by their exit, those of this process here."""

    def read() -> None:
        # So that this process still gets it: see `_interrupts_held`.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for event in _events(readers):
            if isinstance(event, _Failed):
                errors.append(event.error())
                errors[-1].add_note(event.traceback)
            elif on_event is not None:
                on_event(event)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        for writer in writers:
            writer.close()
        thread.join(timeout=5)


def _events(readers: list[Connection]) -> Iterator[Any]:
    """The events from all ranks, as they come, until every rank's pipe has ended; a rank may end in
    the middle of an event."""
    waiting = list(readers)
    while waiting:
        for ready in wait(waiting):
            assert isinstance(ready, Connection)
            try:
                event = ready.recv()
            except (EOFError, OSError):
                waiting.remove(ready)
                ready.close()
                continue
            yield event


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """A context in which ranks start with Ctrl-C blocked until `_rank` runs: during the seconds of
    their imports each would print a traceback.

    They inherit the signal mask of this thread. In this process, the thread of `_reader` receives
    the signal instead, and Python runs its handler here as usual. The resource tracker of
    multiprocessing, which the first process would start, unblocks the signal: so it is started
    before.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """A context in which Ctrl-C raises, so that the ranks are ended and the folder is removed.
    Restores the handlers at the end, since the agent leaves its own behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # outside the main thread, where the agent sets none
        return
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {name: signal.getsignal(name) for name in names}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """A context in which children get one thread: they inherit the environment, which OpenMP reads
    before any code of ours runs."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context that silences the agent's loggers, each with a level of its own. They log every
    failure, and every process that the agent ends, at length; the caller gets one error instead."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
