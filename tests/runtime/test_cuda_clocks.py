"""What measures on CUDA, on a device that is pretended: one that runs behind the host, and keeps
a clock of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hand_programs import Split, perceptron

from planner.graph.layout import Mesh
from planner.torch_private.allocator import Allocations
from runtime.calibrate import timer
from runtime.collectives import Pending
from runtime.recorder import make_recorder


class Device:
    """Work is queued and takes `now` along when the host waits; an event notes when it is
    reached."""

    def __init__(self) -> None:
        self.now = 0.0
        self.held: list[int] = []

    def work(self, seconds: float) -> Callable[..., None]:
        def call(*_: Any) -> None:
            self.now += seconds

        return call

    def hold(self, cycles: int) -> None:
        self.held.append(cycles)
        self.now += cycles / 2e9

    def event(self, **_: Any) -> Event:
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.at = device, -1.0

    def record(self) -> None:
        self.at = self.device.now

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) * 1e3


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    pretended = Device()
    monkeypatch.setattr(torch.cuda, "Event", pretended.event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "side")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(timer, "hold_device", pretended.hold)
    return pretended


@pytest.mark.parametrize(("seconds", "calls"), [(1e-5, 20), (4.5e-4, 4), (1.0, 1)])
def test_a_call_is_timed_by_the_device_without_its_launches(
    device: Device, seconds: float, calls: int
) -> None:
    count = 0

    def call(*_: Any) -> None:
        nonlocal count
        count += 1
        device.work(seconds)()

    assert timer._on_cuda(call, (), 7) == pytest.approx(seconds)
    assert count == 2 + 2 * 7 * calls  # each time once to know what the host takes, and once timed
    assert len(device.held) == 8
    assert all(cycles >= 0 for cycles in device.held)


def test_a_step_is_recorded_by_events(device: Device) -> None:
    program = perceptron(Split(mesh=Mesh(("dp",), (1,))))
    recorder = make_recorder({0: program}, 0, 116, torch.device("cuda", 0))
    recorded = Allocations()
    for index, seconds in enumerate((1e-3, 2e-3)):
        recorder.begin(index)
        device.work(seconds)()
        recorder.end(index)
        recorded.samples += [(time.time_ns(), 200 + index), (time.time_ns(), 100)]
    recorder.begin(2)
    recorder.launched(2, Pending(None, Waited(device)))
    timeline = recorder.timeline(recorded)
    spans = [(event.start, event.end) for event in timeline.events]
    assert spans == [pytest.approx(span) for span in ((0.0, 1e-3), (1e-3, 3e-3), (3e-3, 8e-3))]
    assert timeline.step_time == pytest.approx(8e-3)
    assert [sample.nbytes for sample in timeline.memory] == [116, 200, 100, 201, 100]
    assert [sample.time for sample in timeline.memory] == [
        pytest.approx(at) for at in (0.0, 0.0, 0.0, 1e-3, 1e-3)
    ]


class Waited:
    """A collective's work: the stream that waits for it goes on 5 ms later."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def wait(self) -> None:
        self.device.work(5e-3)()
