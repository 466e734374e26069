"""Work on a second core: its result, and what becomes of work that the second process cannot do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from planner.search import second_process as module
from planner.search.second_process import beside
from planner.solver.relax.quiet import silence_banner


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if HiGHS had not run yet in this process, on a machine of two cores."""
    if not hasattr(os, "fork"):
        pytest.skip("no second process without fork")
    monkeypatch.setattr(module, "_can_fork", lambda: True)


def where(also: Callable[[], object] = lambda: None) -> Callable[[], int]:
    """Work that tells the process that did it."""

    def work() -> int:
        also()
        return os.getpid()

    return work


def result_of(work: Callable[[], int], patience: float = 60.0) -> int:
    with beside(lambda number: [work], lambda: patience) as rows:
        return rows.results(1)[0]


@pytest.mark.usefixtures("forks")
def test_it_is_done_by_another_process() -> None:
    assert result_of(where()) != os.getpid()


@pytest.mark.usefixtures("forks")
def test_both_share_what_nobody_has_begun() -> None:
    """The other process begins with the last task, and holds on to it until this one has done
    the rest; the results come in the order of the tasks."""
    this, ends = os.getpid(), os.pipe()
    tasks = [where(), where(lambda: os.write(ends[1], b"done")), where()]

    def last() -> int:
        if os.getpid() != this:
            assert os.read(ends[0], 4) == b"done"
        return os.getpid()

    with beside(lambda number: [*tasks, last], lambda: 60.0) as rows:
        rows.begin(1)
        done = rows.results(1)
    assert done[1] == this and done[3] != this and {*done} <= {this, done[3]}


@pytest.mark.usefixtures("forks")
def test_each_number_has_tasks_of_its_own_and_ends_those_before() -> None:
    """The tasks of another number end unfinished; if no process waits any more, this one does
    them."""
    this, ends = os.getpid(), os.pipe()

    def tasks(number: int) -> list[Callable[[], tuple[int, int]]]:
        def work() -> tuple[int, int]:
            if number == 1 and os.getpid() != this:
                time.sleep(600)
            return number, os.getpid()

        return [work]

    with beside(tasks, lambda: 60.0, waiting=2) as rows:
        rows.begin(1)
        rows.begin(300)
        rows.begin(300)
        first = rows.results(300)[0]
        second = rows.results(2)[0]
        os.close(ends[1])
        assert os.read(ends[0], 1) == b""  # those of the first number have ended
    os.close(ends[0])
    assert first[0] == 300 and first[1] != this
    assert second == (2, this)


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("how", ["killed", "failed"])
def test_what_the_other_process_cannot_do_is_done_here(
    how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    this = os.getpid()

    def trouble() -> None:
        if os.getpid() != this and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif os.getpid() != this:
            raise MemoryError

    assert result_of(where(trouble)) == this
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("forks")
def test_what_it_raises_is_raised_here() -> None:
    def work() -> int:
        raise ArithmeticError("no such plan")

    with pytest.raises(ArithmeticError, match="no such plan"):
        result_of(work)


@pytest.mark.usefixtures("forks")
def test_what_takes_too_long_is_done_here_and_ended() -> None:
    this, ends = os.getpid(), os.pipe()

    def hang() -> None:
        if os.getpid() != this:
            os.close(ends[0])
            time.sleep(600)

    assert result_of(where(hang), patience=0.05) == this
    os.close(ends[1])
    assert os.read(ends[0], 1) == b""  # nobody holds the other end any more
    os.close(ends[0])


@pytest.mark.usefixtures("forks")
def test_it_ends_with_the_context() -> None:
    ends = os.pipe()
    sleeping = beside(lambda number: [lambda: time.sleep(600)], lambda: 60.0, waiting=2)
    with pytest.raises(ArithmeticError), sleeping as rows:
        rows.begin(1)
        raise ArithmeticError
    os.close(ends[1])
    assert os.read(ends[0], 1) == b""
    os.close(ends[0])


def test_it_ends_with_the_process_that_began_it() -> None:
    """Killed, so that nothing is cleaned up: the pipe that both hold is closed."""
    code = (
        "import os, signal, time; from planner.search import second_process as b; b._can_fork = lambda: True\n"
        "with b.beside(lambda number: [lambda: time.sleep(600)], lambda: 60.0, waiting=2) as rows:\n"
        "    rows.begin(1); time.sleep(1.0); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300)
    # The output was read to its end, which comes when the last process has closed it.
    assert done.returncode == -signal.SIGKILL and done.stdout == b""


@pytest.mark.parametrize("missing", ["cores", "HiGHS's threads"])
def test_without_a_second_process_it_is_done_here(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "cores":
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    else:
        silence_banner()
    assert result_of(where()) == os.getpid()


def test_the_command_says_the_same_with_and_without(tmp_path: Path) -> None:
    """And without is one process, with is more where there are two cores."""
    code = (
        "import os, sys; from planner.search import second_process as beside; {}; "
        "from planner.cli.main import cli; cli(sys.argv[1:])"
    )
    forked = "fork = os.fork; os.fork = lambda: (os.write(2, b'forked '), fork())[1]"
    asked = ["--model", "mlp", "--gpus", "4", "--json", "--out", str(tmp_path)]
    said = []
    for so in (forked, "beside._can_fork = lambda: False"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(so), *asked],
            capture_output=True,
            text=True,
            check=True,
        )
        said.append((json.loads(done.stdout), done.stderr))
    (one, told), (other, nothing) = said
    assert one["alternatives"] == other["alternatives"]
    assert one["solver"]["bound"] == other["solver"]["bound"]
    assert nothing == "" and {*told.split()} == (
        {"forked"} if len(os.sched_getaffinity(0)) > 1 else set()
    )
