"""The `Timeline`: the events of one step on every device, simulated or measured.

The simulator and the executor both return one, with the same event ids, so comparing them is a
join.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Event", "MemorySample", "Timeline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One instruction on one device: `start` and `end` in seconds from the start of the step.

    `kind` is an op kind (`gemm`, `elementwise`, ...) or a collective (`all_reduce`, ...); `phase`
    is `forward`, `backward` or `update`; `stream` is `compute`, `communication` or `host`;
    `channel` names the communicator of a communication, if known: communications that overlap are
    on different channels. An instruction that runs for several microbatches has an event for each.
    `stage` is that of a pipeline: ids are those of one stage.
    """

    id: str
    kind: str
    phase: str
    device: int
    stream: str
    start: float
    end: float
    path: str = ""
    channel: str = ""
    microbatch: int = 0
    stage: int = 0

    @property
    def lane(self) -> str:
        """The stream; for a communication, that of its communicator. Events of one lane do not
        overlap."""
        return f"{self.stream} {self.channel}" if self.channel else self.stream

    @property
    def duration(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySample:
    """Bytes held on `device` from `time` on, until the device's next sample."""

    device: int
    time: float
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The events of one step, in order of their start, and the memory over time."""

    events: tuple[Event, ...]
    memory: tuple[MemorySample, ...] = ()
    step_time: float = 0.0
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def peak_memory(self) -> int:
        """The largest number of bytes held on any device at any time; 0 if memory was not
        recorded."""
        return max((sample.nbytes for sample in self.memory), default=0)

    def on(self, device: int) -> tuple[Event, ...]:
        """The events of one device."""
        return tuple(event for event in self.events if event.device == device)

    def to_chrome_trace(self) -> str:
        """This timeline as Chrome/Perfetto trace JSON: a process per device, a thread per lane, a
        counter of memory."""
        rows: list[dict[str, Any]] = []
        lanes = sorted({event.lane for event in self.events})
        several = any(event.microbatch for event in self.events)
        stages = any(event.stage for event in self.events)
        for device in sorted({event.device for event in self.events}):
            rows.append(
                {
                    "ph": "M",
                    "pid": device,
                    "name": "process_name",
                    "args": {"name": f"device {device}"},
                }
            )
            for thread, lane in enumerate(lanes):
                rows.append(
                    {
                        "ph": "M",
                        "pid": device,
                        "tid": thread,
                        "name": "thread_name",
                        "args": {"name": lane},
                    }
                )
        rows.extend(
            {
                "ph": "X",
                "pid": event.device,
                "tid": lanes.index(event.lane),
                "ts": event.start * 1e6,
                "dur": event.duration * 1e6,
                "name": event.path or event.id,
                "cat": event.kind,
                "args": {"id": event.id, "kind": event.kind, "phase": event.phase}
                | ({"microbatch": event.microbatch} if several else {})
                | ({"stage": event.stage} if stages else {}),
            }
            for event in self.events
        )
        rows.extend(
            {
                "ph": "C",
                "pid": sample.device,
                "ts": sample.time * 1e6,
                "name": "memory",
                "args": {"bytes": sample.nbytes},
            }
            for sample in self.memory
        )
        return json.dumps({"traceEvents": rows, "displayTimeUnit": "ms", "metadata": self.metadata})
