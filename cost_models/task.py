"""The `Task`: one instruction on one device, as the simulator takes it."""

from __future__ import annotations

from dataclasses import dataclass

from cost_models.errors import BadValue

__all__ = ["COMMUNICATION", "COMPUTE", "HOST", "Task"]

COMPUTE = "compute"
COMMUNICATION = "communication"
HOST = "host"
_STREAMS = (COMPUTE, COMMUNICATION, HOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One instruction on one device. `(id, device)` is unique; `deps` are ids of tasks on the same
    device.

    `duration`: seconds alone on its stream. `host_duration`: seconds that the host takes to issue
    it. `allocates` bytes when it starts, `frees` bytes when it ends. `group`: the devices that
    start the task of this id together; empty or the device alone for a local task. A communication
    has a `channel`, the communicator whose stream it runs on, and a `link`, the class of links that
    limits its rate; communications of one class share it.
    """

    id: str
    kind: str
    phase: str
    device: int
    stream: str
    duration: float
    path: str = ""
    host_duration: float = 0.0
    deps: tuple[str, ...] = ()
    allocates: int = 0
    frees: int = 0
    group: tuple[int, ...] = ()
    channel: str = ""
    link: str = ""

    @property
    def lane(self) -> str:
        """The device's in-order queue that the task is in: its stream; for a communication, the
        stream of its communicator."""
        return f"{self.stream} {self.channel}" if self.channel else self.stream

    def __post_init__(self) -> None:
        if self.stream not in _STREAMS:
            raise BadValue(
                f"task {self.id!r}: unknown stream {self.stream!r}, known: {', '.join(_STREAMS)}"
            )
        if self.stream != COMMUNICATION and (self.channel or self.link):
            raise BadValue(
                f"task {self.id!r}: stream {self.stream!r} has neither channel nor link, got "
                f"{self.channel!r}, {self.link!r}"
            )
        if not (self.duration >= 0 and self.host_duration >= 0):
            raise BadValue(
                f"task {self.id!r}: durations must be >= 0, got {self.duration} and "
                f"{self.host_duration} (host)"
            )
        if self.group and self.device not in self.group:
            raise BadValue(
                f"task {self.id!r} on device {self.device} is not in its own group {self.group}"
            )
