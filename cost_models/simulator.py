"""Discrete-event simulation of one training step: tasks in program order on every device, in; a `Timeline`, out.

A device has a host queue that issues its tasks in order, an in-order compute stream and an in-order communication stream.
A collective starts on all devices of its group together. While a device computes and communicates at the same time both
run at the rate 1 / (2 - overlap), so that of two jobs of C and M seconds the share `overlap` of the shorter hides:

    T = C + M - overlap * min(C, M)        overlap = 1: max(C, M); overlap = 0: C + M, one shared resource

Source: the two-rate model of MODELLING 5.3 with both slowdowns 2 - overlap.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Sequence

from cost_models.breakdown import Breakdown, breakdown
from cost_models.errors import BadValue
from cost_models.task import COMMUNICATION, COMPUTE, HOST, Task
from cost_models.timeline import Event, MemorySample, Timeline

__all__ = ["COMMUNICATION", "COMPUTE", "HOST", "Breakdown", "Task", "breakdown", "simulate"]

_OTHER = {COMPUTE: COMMUNICATION, COMMUNICATION: COMPUTE}
Place = tuple[int, str]


class _Run:
    """A task, or all members of one collective, while it runs: the work left, the rate, when the two were last set."""

    __slots__ = ("contended", "left", "rate", "since", "start", "stream", "tasks", "version")

    def __init__(self, tasks: list[Task], now: float) -> None:
        self.tasks = tasks
        self.stream = tasks[0].stream
        self.left = max(task.duration for task in tasks)
        self.start = self.since = now
        self.rate = 1.0
        self.version = 0
        self.contended = 0  # devices of this run on which the other stream is busy


class _Simulation:
    """The state of one simulation. Heap entries are the end of a run, or a place (device, stream) to look at again."""

    def __init__(self, tasks: Sequence[Task], num_devices: int, initial_memory: int, overlap: float) -> None:
        self.slow = 1.0 / (2.0 - overlap)
        self.now = 0.0
        self.sequence = 0
        self.heap: list[tuple[float, int, _Run | Place, int]] = []
        self.wake_times: dict[Place, float] = {}
        self.done: set[tuple[int, str]] = set()
        self.waiting: dict[tuple[int, str], set[str]] = defaultdict(set)
        self.arrived: dict[str, dict[int, Task]] = defaultdict(dict)
        self.running: dict[Place, _Run] = {}
        self.queues: dict[Place, deque[tuple[Task, float]]] = defaultdict(deque)
        self.program: list[deque[Task]] = [deque() for _ in range(num_devices)]
        self.host_free = [0.0] * num_devices
        self.events: list[Event] = []
        self.held = [initial_memory] * num_devices
        self.samples = [MemorySample(device=d, time=0.0, nbytes=initial_memory) for d in range(num_devices)]
        for task in tasks:
            self.program[task.device].append(task)

    def run(self) -> None:
        """Drain the heap. Raises `BadValue` where tasks are left that nothing can start."""
        for device in range(len(self.program)):
            self.issue(device)
        while self.heap:
            self.now, _, what, version = heapq.heappop(self.heap)
            if isinstance(what, tuple):
                self.wake_times.pop(what, None)
                self.look(*what)
            elif what.version == version:
                self.finish(what)
        left = [task.id for program in self.program for task in program]
        left += [task.id for queue in self.queues.values() for task, _ in queue]
        if left:
            raise BadValue(f"{len(left)} tasks wait for tasks or devices that never come, the first is {left[0]!r}")

    def look(self, device: int, stream: str) -> None:
        """Start what can start on one stream of one device."""
        if stream == HOST:
            self.issue(device)
        else:
            self.advance(device, stream)

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
            self.queues[device, task.stream].append((task, self.host_free[device]))
        self.advance(device, COMPUTE)
        self.advance(device, COMMUNICATION)

    def start_host(self, device: int, task: Task) -> None:
        """Run a host task once its inputs are there: it holds the host queue."""
        if (device, HOST) in self.running or self.blocked(task):
            return
        if not self.wait_until(self.host_free[device] + task.host_duration, (device, HOST)):
            self.program[device].popleft()
            self.start([task])

    def blocked(self, task: Task) -> bool:
        """Whether a dependency is open; the task's stream is then looked at again when it closes."""
        for dep in task.deps:
            if (task.device, dep) not in self.done:
                self.waiting[task.device, dep].add(task.stream)
                return True
        return False

    def wait_until(self, time: float, place: Place) -> bool:
        """Whether `time` is still to come; the place is then looked at again at that time."""
        if time <= self.now:
            return False
        if self.wake_times.get(place) != time:
            self.wake_times[place] = time
            self.push(time, place)
        return True

    def push(self, time: float, what: _Run | Place, version: int = 0) -> None:
        self.sequence += 1
        heapq.heappush(self.heap, (time, self.sequence, what, version))

    def advance(self, device: int, stream: str) -> None:
        """Start the head of a stream if the stream is free, the host has issued it, its inputs and its group are there."""
        queue = self.queues[device, stream]
        if not queue or (device, stream) in self.running:
            return
        task, issued = queue[0]
        if self.blocked(task) or self.wait_until(issued, (device, stream)):
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
        """Start a run; where the other stream of one of its devices is busy, both are slowed."""
        run = _Run(tasks, self.now)
        for task in tasks:
            self.running[task.device, task.stream] = run
            self.hold(task.device, task.allocates)
            opponent = self.opponent(task)
            if opponent is not None:
                run.contended += 1
                self.contend(opponent, 1)
        run.rate = self.slow if run.contended else 1.0
        self.push(self.now + run.left / run.rate, run, run.version)

    def opponent(self, task: Task) -> _Run | None:
        """What runs on the other stream of the task's device."""
        return None if task.stream == HOST else self.running.get((task.device, _OTHER[task.stream]))

    def contend(self, run: _Run, change: int) -> None:
        """Count one more or one fewer contended device of `run`, and move its end if its rate changes."""
        run.contended += change
        rate = self.slow if run.contended else 1.0
        if rate != run.rate:
            run.left = max(0.0, run.left - (self.now - run.since) * run.rate)
            run.since, run.rate = self.now, rate
            run.version += 1
            self.push(self.now + run.left / rate, run, run.version)

    def finish(self, run: _Run) -> None:
        """End a run on all its devices, then look at the streams that it was in the way of."""
        for task in run.tasks:
            del self.running[task.device, run.stream]
            self.hold(task.device, -task.frees)
            self.done.add((task.device, task.id))
            self.record(task, run.start)
            opponent = self.opponent(task)
            if opponent is not None:
                self.contend(opponent, -1)
            if run.stream == HOST:
                self.host_free[task.device] = self.now
        for task in run.tasks:
            streams = self.waiting.pop((task.device, task.id), set()) | {run.stream}
            for stream in sorted(streams):
                self.look(task.device, stream)

    def record(self, task: Task, start: float) -> None:
        self.events.append(
            Event(
                id=task.id, kind=task.kind, phase=task.phase, device=task.device, stream=task.stream,
                start=start, end=self.now, path=task.path,
            )
        )  # fmt: skip

    def hold(self, device: int, nbytes: int) -> None:
        if nbytes:
            self.held[device] += nbytes
            self.samples.append(MemorySample(device=device, time=self.now, nbytes=self.held[device]))


def simulate(tasks: Sequence[Task], *, num_devices: int, initial_memory: int, overlap: float) -> Timeline:
    """The `Timeline` of `tasks` (in program order on each device) on devices that hold `initial_memory` bytes each.

    A task starts when the host has issued it (`host_duration` each, in program order), the task before it on its stream has
    ended, all its `deps` have ended and, in a `group`, all members are that far; a collective takes as long as its longest
    member. Step time = the last end. Raises `BadValue` where tasks wait for each other or for a device outside the step.
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
