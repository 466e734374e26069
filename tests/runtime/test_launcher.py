"""The launcher: results and events by rank, and one line about the process that failed."""

from __future__ import annotations

import time

import pytest

from cost_models.errors import BadValue, RunFailed
from runtime.launcher import launch


def test_results_and_events() -> None:
    events: list[dict[str, int]] = []
    assert launch("rank_checks:echo", 2, "hello", on_event=events.append) == [(0, "hello"), (1, "hello")]
    assert sorted(event["rank"] for event in events) == [0, 1]


def test_failure_names_the_rank_and_its_error() -> None:
    start = time.perf_counter()
    with pytest.raises(RunFailed, match=r"^rank 1: .*the disk is full") as caught:
        launch("rank_checks:failing", 2, 2)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 25


def test_a_killed_process_is_the_cause() -> None:
    with pytest.raises(RunFailed, match=r"^rank 1: ended by SIGKILL"):
        launch("rank_checks:killed", 2)


def test_a_failing_instruction_is_named() -> None:
    with pytest.raises(RunFailed, match=r"^rank \d: instruction c\d+ \(aten\.mm\.default, first\): mat1 and mat2"):
        launch("rank_checks:broken_program", 2)


def test_fewer_processes_than_needed() -> None:
    with pytest.raises(RunFailed, match="needs 3 processes and 2 were started"):
        launch("rank_checks:failing", 2, 3)


def test_no_ranks() -> None:
    with pytest.raises(BadValue, match="number of ranks is 0"):
        launch("rank_checks:echo", 0)
