"""The recorder that a recorded step calls around every instruction: when it ran, and the memory
that torch's allocator held meanwhile.

On CPU the clock is `time.perf_counter`; on CUDA, device events. A collective under way ends when
its work is done, not when it is waited for. Memory is the allocator's own count, which includes
kernels' workspaces. It is counted by the host's clock, so on CUDA a sample is placed at the time at
which the device runs the instruction that the host was issuing.
"""

from __future__ import annotations

import contextlib
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cost_models.timeline import Event, MemorySample, Timeline
from planner.program.actions import Action
from planner.program.program import Communicate, Program
from planner.torch_private.allocator import Allocations
from runtime.collectives import Pending

__all__ = ["PASSING", "Recorder", "make_recorder"]

#: The kinds of events of what goes between stages.
PASSING = ("send", "receive")


@dataclass(frozen=True, slots=True)
class Passing:
    """What goes from one stage of a pipeline to another: `stage` is the one that this rank has."""

    id: str
    kind: str
    phase: str
    stage: int
    microbatch: int


class Recorder:
    """The times of one step, on CPU, of the programs of a rank's stages; `start` is when it began,
    `held` the bytes held before it."""

    def __init__(self, programs: Mapping[int, Program], rank: int, held: int) -> None:
        self.programs = programs
        self.rank = rank
        self.held = held
        #: The action that runs. A step notes instructions by their index in its body.
        self.action = next(iter(programs.values())).actions[0]
        self.spans: dict[tuple[Action, int], list[Any]] = {}
        #: What goes between stages, and when.
        self.messages: list[tuple[Passing, list[Any]]] = []
        self.begun = time.time_ns()
        self.start = self.now()

    def now(self) -> Any:
        """A time stamp."""
        return time.perf_counter()

    def seconds(self, stamp: Any) -> float:
        """Seconds from the start of the step to a time stamp."""
        return float(stamp - self.start)

    def begin(self, index: int) -> None:
        """Notes that instruction `index` begins."""
        self.spans[self.action, index] = [self.now(), None]

    def end(self, index: int) -> None:
        """Notes that instruction `index` has ended."""
        self.close(self.spans[self.action, index])

    def close(self, span: list[Any]) -> None:
        """Notes that what began with `span` has ended."""
        span[1] = self.now()

    def launched(self, index: int, pending: Pending) -> None:
        """Notes that the asynchronous instruction `index` is under way."""
        self.end(index)
        if pending.work is not None:
            span = self.spans[self.action, index]
            pending.work.get_future().add_done_callback(lambda _: self.close(span))

    def waiting(self, index: int, pending: Pending) -> None:
        """Notes that the wait for the asynchronous instruction `index` begins."""
        # No other thread works on it: its time is that of its start plus that of its end.
        if pending.work is None:
            start, stop = self.spans[self.action, index]
            self.spans[self.action, index] = [self.now() - (stop - start), None]

    def waited(self, index: int) -> None:
        """Notes that the wait for the asynchronous instruction `index` has ended."""
        # If another thread works on it, that thread notes its end.
        if self.spans[self.action, index][1] is None:
            self.end(index)

    @contextlib.contextmanager
    def passing(
        self, kind: str, number: int, phase: str, stage: int, microbatch: int
    ) -> Iterator[None]:
        """A context that sends a value to another stage, or waits for it."""
        span = [self.now(), None]
        self.messages.append((Passing(f"{kind}.{number}", kind, phase, stage, microbatch), span))
        yield
        self.close(span)

    def timeline(self, allocations: Allocations) -> Timeline:
        """The step as a `Timeline` of this device; `allocations` are those of the whole step."""
        stop = self.now()
        self.synchronize()
        events = [self._event(*key, *span) for key, span in self.spans.items()]
        events += [self._message(message, *span) for message, span in self.messages]
        samples = [(0.0, self.held), *self.memory(allocations)]
        return Timeline(
            events=tuple(sorted(events, key=lambda event: event.start)),
            memory=tuple(
                MemorySample(device=self.rank, time=time, nbytes=nbytes) for time, nbytes in samples
            ),
            step_time=self.seconds(stop),
        )

    def memory(self, allocations: Allocations) -> list[tuple[float, int]]:
        """Seconds from the start of the step, and the bytes held from then on."""
        return [
            (max(0.0, (at - self.begun) * 1e-9), self.held + nbytes - allocations.before)
            for at, nbytes in allocations.samples
        ]

    def synchronize(self) -> None:
        """Makes all time stamps readable."""

    def _event(self, action: Action, index: int, start: Any, end: Any) -> Event:
        instruction = self.programs[action.stage].bodies[action.body][index]
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
            microbatch=action.microbatch,
            stage=action.stage,
        )

    def _message(self, message: Passing, start: Any, end: Any) -> Event:
        return Event(
            id=message.id,
            kind=message.kind,
            phase=message.phase,
            device=self.rank,
            stream="communication",
            start=self.seconds(start),
            end=self.seconds(end),
            channel="stages",
            microbatch=message.microbatch,
            stage=message.stage,
        )


class _CudaRecorder(Recorder):
    def __init__(self, *args: Any) -> None:
        self.side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.issued: list[tuple[int, list[Any]]] = []
        super().__init__(*args)

    def now(self) -> Any:
        stamp = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        stamp.record()
        return stamp

    def seconds(self, stamp: Any) -> float:
        return float(self.start.elapsed_time(stamp)) / 1e3

    def begin(self, index: int) -> None:
        at = time.time_ns()
        super().begin(index)
        self.issued.append((at, self.spans[self.action, index]))

    def launched(self, index: int, pending: Pending) -> None:
        with torch.cuda.stream(self.side):
            if pending.work is not None:
                pending.work.wait()  # only this stream waits, not the host
            self.end(index)

    def waiting(self, index: int, pending: Pending) -> None:
        """Nothing to note: work without a handle is done when it is launched."""

    def waited(self, index: int) -> None:
        """The same."""

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def memory(self, allocations: Allocations) -> list[tuple[float, int]]:
        out, times = [], [at for at, _ in self.issued]
        for at, nbytes in allocations.samples:
            place = bisect_right(times, at)
            out.append((self.seconds(self.issued[place - 1][1][0]) if place else 0.0, nbytes))
        return out


def make_recorder(
    programs: Mapping[int, Program], rank: int, held: int, device: torch.device
) -> Recorder:
    """A recorder for one step on `device`, by the programs of a rank's stages; `held` are the bytes
    of the values held before it and of the optimizer's state."""
    return (_CudaRecorder if device.type == "cuda" else Recorder)(programs, rank, held)
