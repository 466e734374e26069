"""The launcher: results and events by rank, and one line about the process that failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cost_models.errors import BadValue, RunFailed
from runtime.launcher import launch

#: As the product starts them; a fork server, moreover, hands on that a signal has ended a rank when
#: others have failed of it.
SPAWNED = pytest.mark.usefixtures("spawned_ranks")


@SPAWNED
def test_results_and_events() -> None:
    events: list[dict[str, int]] = []
    (*first, one), (*second, other) = launch("rank_checks:echo", 2, "hello", on_event=events.append)
    assert (first, second) == ([0, "hello"], [1, "hello"])
    assert one == other, "ranks go through sets of texts alike"
    assert sorted(event["rank"] for event in events) == [0, 1]


@SPAWNED
def test_failure_names_the_rank_and_its_error() -> None:
    with pytest.raises(RunFailed, match=r"^rank 1: .*the disk is full") as caught:
        launch("rank_checks:failing", 2, 2)
    assert "\n" not in str(caught.value)


_ENDED_WHILE_TALKING = """
import sys, time
from cost_models.errors import RunFailed
from runtime.launcher import launch
if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    try:
        launch("rank_checks:talking", 2, on_event=lambda event: time.sleep(5))
    except RunFailed as error:
        print(error)
"""


def test_a_process_that_is_ended_while_it_talks_holds_up_nobody(tmp_path: Path) -> None:
    script = tmp_path / "talking.py"
    script.write_text(_ENDED_WHILE_TALKING)
    command = [sys.executable, str(script), str(Path(__file__).parent)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.startswith("rank 1: ended by SIGKILL")


@SPAWNED
def test_a_killed_process_is_the_cause() -> None:
    with pytest.raises(RunFailed, match=r"^rank 1: ended by SIGKILL"):
        launch("rank_checks:killed", 2)


@SPAWNED
def test_a_rank_that_ctrl_c_ends_before_this_process_hears_of_it_is_an_interruption() -> None:
    with pytest.raises(KeyboardInterrupt):
        launch("rank_checks:killed", 2, signal.SIGINT)


def test_a_failing_instruction_is_named() -> None:
    with pytest.raises(
        RunFailed, match=r"^rank \d: instruction c\d+ \(aten\.mm\.default, first\): mat1 and mat2"
    ):
        launch("rank_checks:broken_program", 2)


_INTERRUPTED = """
import sys
from runtime.launcher import launch
if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    try:
        launch("rank_checks:sleeping", 2, on_event=lambda event: print(event["pid"], flush=True))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_interrupt_leaves_no_process(tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(_INTERRUPTED)
    command = [sys.executable, str(script), str(Path(__file__).parent)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        children = [int(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert "Traceback" not in errors, errors
    assert not any(_is_running(child) for child in children)


_INTERRUPTED_EARLY = """
import os, signal, sys, time
if __name__ == "__mp_main__":
    os.write(1, b"%d\\n" % os.getpid())  # at once: both write to one pipe
    time.sleep(1)
from runtime.launcher import launch
if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    names = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(name) for name in names]  # a shell ignores SIGINT for what it starts in the background
    try:
        launch("rank_checks:sleeping", 2)
    except KeyboardInterrupt:
        assert [signal.getsignal(name) for name in names] == before
        sys.exit(130)
"""


def test_interrupt_while_ranks_start_is_quiet(tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches every process at once, also those that are still importing."""
    script = tmp_path / "interrupted.py"
    script.write_text(_INTERRUPTED_EARLY)
    command = [sys.executable, str(script), str(Path(__file__).parent)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        children = [int(process.stdout.readline()) for _ in range(2)]
        os.killpg(process.pid, signal.SIGINT)
        errors = process.stderr.read()
        assert (process.wait(timeout=60), errors) == (130, "")
    assert not any(_is_running(child) for child in children)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_fewer_processes_than_needed() -> None:
    with pytest.raises(RunFailed, match="needs 3 processes but 2 were started"):
        launch("rank_checks:failing", 2, 3)


def test_no_ranks() -> None:
    with pytest.raises(BadValue, match="number of ranks is 0"):
        launch("rank_checks:echo", 0)
