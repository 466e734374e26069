"""Discrete-event simulation of one training step: tasks in program order on every device, in; a `Timeline`, out.

A device has a host queue that issues its tasks in order, an in-order compute stream and an in-order communication stream.
A collective starts on all devices of its group together. While a device computes and communicates at the same time both
run at the rate 1 / (2 - overlap), so that of two jobs of C and M seconds the share `overlap` of the shorter hides:
T = C + M - overlap * min(C, M). overlap = 1 is max(C, M); overlap = 0 is C + M, one shared resource. Two-rate model: MODELLING 5.3.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from cost_models.breakdown import Breakdown, breakdown
from cost_models.errors import BadValue
from cost_models.timeline import Event, MemorySample, Timeline

__all__ = ["COMMUNICATION", "COMPUTE", "HOST", "Breakdown", "Task", "breakdown", "simulate"]

COMPUTE = "compute"
COMMUNICATION = "communication"
HOST = "host"
_STREAMS = (COMPUTE, COMMUNICATION, HOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One instruction on one device. `(id, device)` is unique; `deps` are ids of tasks on the same device.

    `duration`: seconds alone on its stream. `host_duration`: seconds that the host takes to issue it. `allocates` bytes when it
    starts, `frees` bytes when it ends. `group`: the devices that start the task of this id together; empty for a local task.
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

    def __post_init__(self) -> None:
        if self.stream not in _STREAMS:
            raise BadValue(f"task {self.id!r}: unknown stream {self.stream!r}, known: {', '.join(_STREAMS)}")
        if not (self.duration >= 0 and self.host_duration >= 0):
            raise BadValue(f"task {self.id!r}: durations are >= 0, got {self.duration} and {self.host_duration} (host)")


class _Run:
    """A task (or all members of one collective) while it runs: work left, the rate, and when it was last looked at."""

    __slots__ = ("contended", "devices", "left", "rate", "since", "start", "stream", "tasks", "version")

    def __init__(self, tasks: list[Task], now: float) -> None:
        self.tasks = tasks
        self.devices = [task.device for task in tasks]
        self.stream = tasks[0].stream
        self.left = max(task.duration for task in tasks)
        self.start = self.since = now
        self.rate = 1.0
        self.version = 0
        self.contended = 0  # devices of this run on which the other stream is busy


class _Simulation:
    """The state of one simulation; `run` drains the event heap."""

    def __init__(self, tasks: Sequence[Task], num_devices: int, initial_memory: int, overlap: float) -> None:
        self.slow = 1.0 / (2.0 - overlap)
        self.now = 0.0
        self.sequence = 0
        self.heap: list[tuple[float, int, _Run | int, int]] = []
        self.done: set[tuple[int, str]] = set()
        self.waiting: dict[tuple[int, str], list[tuple[int, str]]] = defaultdict(list)
        self.arrived: dict[str, dict[int, Task]] = defaultdict(dict)
        self.running: dict[tuple[int, str], _Run] = {}
        self.queues: dict[tuple[int, str], deque[Task]] = defaultdict(deque)
        self.program: list[deque[Task]] = [deque() for _ in range(num_devices)]
        self.host_free = [0.0] * num_devices
        self.issued: dict[tuple[int, str], float] = {}
        self.events: list[Event] = []
        self.held = [initial_memory] * num_devices
        self.samples = [MemorySample(device=d, time=0.0, nbytes=initial_memory) for d in range(num_devices)]
        for task in tasks:
            self.program[task.device].append(task)

    def run(self) -> None:
        for device in range(len(self.program)):
            self.issue(device)
        while self.heap:
            self.now, _, what, version = heapq.heappop(self.heap)
            if isinstance(what, int):
                self.advance(what)
            elif what.version == version:
                self.finish(what)
        left = [task.id for queue in (*self.program, *self.queues.values()) for task in queue]
        left += [task.id for members in self.arrived.values() for task in members.values()]
        if left:
            raise BadValue(f"the tasks cannot all run: {left[0]!r} and {len(left) - 1} more wait for tasks or devices that never come")

    def issue(self, device: int) -> None:
        """Let the host of `device` issue tasks until it must wait for one of its own (stream `host`)."""
        program = self.program[device]
        while program:
            task = program[0]
            if task.stream == HOST:
                self.start_host(device, task)
                break
            program.popleft()
            self.host_free[device] += task.host_duration
            self.issued[device, task.id] = self.host_free[device]
            self.queues[device, task.stream].append(task)
        self.advance_stream(device, COMPUTE)
        self.advance_stream(device, COMMUNICATION)

    def start_host(self, device: int, task: Task) -> None:
        """Run a host task once its inputs are there: it holds the host queue."""
        if (device, HOST) in self.running or self.blocked(task):
            return
        begin = self.host_free[device] + task.host_duration
        if begin > self.now:
            self.push(begin, device)
            return
        self.program[device].popleft()
        self.start([task])

    def blocked(self, task: Task) -> bool:
        """Whether a dependency is open; the task's stream is then looked at again when it closes."""
        for dep in task.deps:
            if (task.device, dep) not in self.done:
                self.waiting[task.device, dep].append((task.device, task.stream))
                return True
        return False

    def push(self, time: float, what: _Run | int, version: int = 0) -> None:
        self.sequence += 1
        heapq.heappush(self.heap, (time, self.sequence, what, version))

    def advance(self, device: int) -> None:
        if self.program[device]:
            self.issue(device)
        else:
            self.advance_stream(device, COMPUTE)
            self.advance_stream(device, COMMUNICATION)

    def advance_stream(self, device: int, stream: str) -> None:
        """Start the head of a stream if the stream is free, its inputs are there, the host has issued it and its group is ready."""
        queue = self.queues[device, stream]
        if not queue or (device, stream) in self.running:
            return
        task = queue[0]
        if self.blocked(task):
            return
        issued = self.issued[device, task.id]
        if issued > self.now:
            self.push(issued, device)
            return
        if len(task.group) <= 1:
            queue.popleft()
            self.start([task])
            return
        members = self.arrived[task.id]
        members[device] = task
        if len(members) == len(task.group):
            del self.arrived[task.id]
            for member in task.group:
                self.queues[member, stream].popleft()
            self.start([members[member] for member in task.group])

    def start(self, tasks: list[Task]) -> None:
        run = _Run(tasks, self.now)
        for task in tasks:
            self.running[task.device, task.stream] = run
            self.hold(task.device, task.allocates)
        if run.stream != HOST:
            other = COMMUNICATION if run.stream == COMPUTE else COMPUTE
            for device in run.devices:
                opponent = self.running.get((device, other))
                if opponent is not None:
                    run.contended += 1
                    self.contend(opponent, 1)
        run.rate = self.slow if run.contended else 1.0
        self.push(self.now + run.left / run.rate, run, run.version)

    def contend(self, run: _Run, change: int) -> None:
        """Count one more (or fewer) contended device of `run`, and move its end if its rate changes."""
        run.contended += change
        rate = self.slow if run.contended else 1.0
        if rate != run.rate:
            run.left = max(0.0, run.left - (self.now - run.since) * run.rate)
            run.since, run.rate = self.now, rate
            run.version += 1
            self.push(self.now + run.left / rate, run, run.version)

    def finish(self, run: _Run) -> None:
        other = COMMUNICATION if run.stream == COMPUTE else COMPUTE
        for task in run.tasks:
            device = task.device
            del self.running[device, run.stream]
            self.hold(device, -task.frees)
            self.done.add((device, task.id))
            self.events.append(
                Event(
                    id=task.id, kind=task.kind, phase=task.phase, device=device, stream=task.stream,
                    start=run.start, end=self.now, path=task.path,
                )
            )  # fmt: skip
            if run.stream == HOST:
                self.host_free[device] = self.now
            else:
                opponent = self.running.get((device, other))
                if opponent is not None:
                    self.contend(opponent, -1)
        for task in run.tasks:
            self.wake(task.device, task.id, run.stream)

    def wake(self, device: int, task_id: str, stream: str) -> None:
        """Look again at the stream that became free and at those that waited for the finished task."""
        streams = {stream for _, stream in self.waiting.pop((device, task_id), ())} | {stream}
        if HOST in streams:
            self.issue(device)
        for name in streams - {HOST}:
            self.advance_stream(device, name)

    def hold(self, device: int, nbytes: int) -> None:
        if nbytes:
            self.held[device] += nbytes
            self.samples.append(MemorySample(device=device, time=self.now, nbytes=self.held[device]))


def simulate(tasks: Sequence[Task], *, num_devices: int, initial_memory: int, overlap: float) -> Timeline:
    """The `Timeline` of `tasks` (in program order on each device) on `num_devices` devices that hold `initial_memory` bytes each.

    A task starts when the host has issued it (`host_duration` each, in program order), the task before it on its stream has ended,
    all its `deps` have ended and, in a `group`, all members are that far. Step time = the last end. Raises `BadValue` where
    tasks wait for each other or for a device outside the step.
    """
    if not 0 <= overlap <= 1:
        raise BadValue(f"overlap is a share between 0 and 1, got {overlap}")
    outside = next((task for task in tasks if not 0 <= task.device < num_devices), None)
    if outside is not None:
        raise BadValue(f"task {outside.id!r} is on device {outside.device}, but there are {num_devices} devices")
    simulation = _Simulation(tasks, num_devices, initial_memory, overlap)
    simulation.run()
    events = tuple(sorted(simulation.events, key=lambda event: (event.start, event.device, event.end)))
    step_time = max((event.end for event in events), default=0.0)
    return Timeline(events=events, memory=tuple(simulation.samples), step_time=step_time, metadata={"overlap": overlap})
