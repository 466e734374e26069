"""What the recorded step calls around every instruction: when it ran, and how many bytes were held.

On CPU the clock is `time.perf_counter`; on CUDA, device events. A collective under way ends when its work is done, not when
it is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from cost_models.timeline import Event, MemorySample, Timeline
from planner.program import Communicate, Program
from runtime.collectives import Pending

__all__ = ["Recorder", "make_recorder"]


class Recorder:
    """Times of one step, on CPU; `start` is when it began."""

    def __init__(self, program: Program, rank: int, held: Iterable[Tensor], other_bytes: int) -> None:
        self.program = program
        self.rank = rank
        self.spans: dict[int, list[Any]] = {}
        self.counts: dict[int, int] = {}
        self.nbytes = other_bytes
        self.samples: list[tuple[Any, int]] = []
        self.start = self.now()
        self.hold(*held)

    def now(self) -> Any:
        """A time stamp."""
        return time.perf_counter()

    def seconds(self, stamp: Any) -> float:
        """Seconds from the start of the step to a time stamp."""
        return float(stamp - self.start)

    def begin(self, index: int) -> None:
        """Instruction `index` begins."""
        self.spans[index] = [self.now(), None]

    def end(self, index: int) -> None:
        """Instruction `index` has ended."""
        self.spans[index][1] = self.now()

    def launched(self, index: int, pending: Pending) -> None:
        """The asynchronous instruction `index` is under way."""
        self.end(index)
        if pending.work is not None:
            pending.work.get_future().add_done_callback(lambda _: self.end(index))

    def waiting(self, index: int, pending: Pending) -> None:
        """The asynchronous instruction `index` is waited for from here."""
        if pending.work is None:  # nobody else works at it: it is what its start took and what its end takes
            start, stop = self.spans[index]
            self.spans[index] = [self.now() - (stop - start), None]

    def waited(self, index: int, pending: Pending) -> None:
        """The asynchronous instruction `index` has been waited for."""
        if pending.work is None:
            self.end(index)

    def hold(self, *tensors: Tensor) -> None:
        """The tensors are alive from here on; memory that several share counts once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            count = self.counts.get(storage.data_ptr(), 0)
            self.counts[storage.data_ptr()] = count + 1
            if not count:
                self.nbytes += storage.nbytes()
        self.samples.append((self.now(), self.nbytes))

    def release(self, *tensors: Tensor) -> None:
        """The tensors are freed here."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            count = self.counts.get(storage.data_ptr(), 0)
            self.counts[storage.data_ptr()] = count - 1
            if count == 1:
                self.nbytes -= storage.nbytes()
        self.samples.append((self.now(), self.nbytes))

    def timeline(self) -> Timeline:
        """The step as a `Timeline` of this one device."""
        stop = self.now()
        self.synchronize()
        events = [self._event(index, *span) for index, span in self.spans.items()]
        return Timeline(
            events=tuple(sorted(events, key=lambda event: event.start)),
            memory=tuple(MemorySample(device=self.rank, time=max(0.0, self.seconds(t)), nbytes=n) for t, n in self.samples),
            step_time=self.seconds(stop),
        )

    def synchronize(self) -> None:
        """Makes all time stamps readable."""

    def _event(self, index: int, start: Any, end: Any) -> Event:
        instruction = self.program.instructions[index]
        talks = isinstance(instruction, Communicate) and instruction.kind != "slice"
        return Event(
            id=instruction.id,
            kind=instruction.kind,
            phase=instruction.phase,
            device=self.rank,
            stream="communication" if talks else "compute",
            start=self.seconds(start),
            end=self.seconds(end),
            path=instruction.path,
        )


class _CudaRecorder(Recorder):
    def __init__(self, *args: Any) -> None:
        self.side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        super().__init__(*args)

    def now(self) -> Any:
        stamp = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        stamp.record()
        return stamp

    def seconds(self, stamp: Any) -> float:
        return float(self.start.elapsed_time(stamp)) / 1e3

    def launched(self, index: int, pending: Pending) -> None:
        with torch.cuda.stream(self.side):
            if pending.work is not None:
                pending.work.wait()  # only this stream waits
            self.end(index)

    def waiting(self, index: int, pending: Pending) -> None:
        """Work without a handle is done where it is launched."""

    def waited(self, index: int, pending: Pending) -> None:
        """The same."""

    def synchronize(self) -> None:
        torch.cuda.synchronize()


def make_recorder(program: Program, rank: int, held: Iterable[Tensor], other_bytes: int, device: torch.device) -> Recorder:
    """A recorder for one step on `device`; `held` are the values held before it, `other_bytes` the optimizer's state."""
    return (_CudaRecorder if device.type == "cuda" else Recorder)(program, rank, held, other_bytes)
