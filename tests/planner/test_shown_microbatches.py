"""What is shown of a step of many microbatches."""

from __future__ import annotations

import json

import pytest

from cost_models.timeline import Event, MemorySample, Timeline
from planner.report.shown_microbatches import begins_of, shown
from planner.report.timeline_picture import _phase_spans


def step(microbatches: int) -> Timeline:
    """One second each of counting; then two of forward and three of backward for each microbatch,
    with a message that ends in the next one, and one of update."""
    events: list[Event] = []

    def add(name: str, phase: str, start: float, seconds: float, number: int, stream: str) -> None:
        events.append(
            Event(
                id=name, kind="gemm", phase=phase, device=0, stream=stream, start=start,
                end=start + seconds, microbatch=number,
            )
        )  # fmt: skip

    for j in range(microbatches):
        add("count", "forward", j, 1.0, j, "compute")
    for j in range(microbatches):
        begin = microbatches + 5.0 * j
        add("f", "forward", begin, 2.0, j, "compute")
        add("b", "backward", begin + 2, 2.5, j, "compute")
        add("sum", "update", begin + 4.5, 0.5, j, "compute")
        add("sent", "backward", begin + 4, 1.5, j, "communication")
    end = 6.0 * microbatches
    add("update", "update", end, 1.0, microbatches - 1, "compute")
    memory = tuple(MemorySample(device=0, time=e.start, nbytes=n) for n, e in enumerate(events))
    ordered = tuple(sorted(events, key=lambda event: event.start))
    return Timeline(events=ordered, memory=memory, step_time=end + 1)


def test_a_microbatch_begins_with_its_forward() -> None:
    assert begins_of(step(3).events) == [3.0, 8.0, 13.0]
    spans = _phase_spans(step(2).events, 13.0)
    assert [phase for phase, _, _ in spans] == ["forward", "backward"] * 2 + ["update"]
    assert [low for _, low, _ in spans[1:]] == [4.0, 7.0, 9.0, 11.5]


def test_of_few_all_are_shown() -> None:
    found = shown(step(4), 4)
    assert (found.timeline, found.words) == (step(4), "")
    assert found.cut([0.0, 1.0], {"a": [1, 2]}) == ([0.0, 1.0], {"a": [1, 2]})


def test_of_many_three_are_shown_without_a_gap() -> None:
    """And what of their messages runs in them."""
    whole = step(16)
    found = shown(whole, 4)
    assert found.words == "microbatches 1, 9 and 16 of 16"
    assert [high - low for low, high in found.parts] == [21.0, 5.0, 6.0]
    assert found.timeline.step_time == 32.0
    computes = [e for e in found.timeline.events if e.stream == "compute"]
    assert sum(e.duration for e in computes) == pytest.approx(32.0)
    forward = [(e.microbatch, e.start) for e in computes if e.id == "f"]
    assert forward == [(0, 16.0), (8, 21.0), (15, 26.0)]
    spans = _phase_spans(found.timeline.events, found.timeline.step_time)
    assert [phase for phase, _, _ in spans] == ["forward", "backward"] * 3 + ["update"]
    sent = [e.duration for e in found.timeline.events if e.id == "sent"]
    assert sent == [1.0, 0.5, 1.0, 0.5, 1.5]
    args = json.loads(found.timeline.to_chrome_trace())["traceEvents"][-1]
    assert args["name"] == "memory"
    times, held = found.cut([0.0, 20.5, 56.0, 58.0, 90.0], {"a": [1, 2, 3, 4, 5]})
    assert times == [0.0, 20.5, 21.0, 23.0, 26.0]
    assert held == {"a": [1, 2, 3, 4, 5]}
