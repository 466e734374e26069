"""Discrete-event simulation of one training step: tasks in program order on every device ->
`Timeline`.

A device has a host queue that issues its tasks in order, an in-order compute stream, and an
in-order communication stream per communicator (`Task.channel`), as in NCCL. A collective starts on
all devices of its group together. On one device:

* while it computes and communicates, the compute and each communication run at the rate 1 / (2 -
  overlap);
* k communications over one class of links (`Task.link`) at the same time run at 1 / k each; those
  over different classes do not disturb each other.

So if C seconds of compute and M of communication run together, a share `overlap` of the shorter
hides:

    T = C + M - overlap * min(C, M)        overlap = 1: max(C, M); overlap = 0: C + M, one shared resource

In any order, with C the seconds of all compute and M_c those of all communications over links of
class c,

    T >= C + (1 - overlap) M_c:

While compute runs beside class c for x seconds, x / (2 - overlap) of C and as much of M_c get done,
together x of C + (1 - overlap) M_c; at any other time, no more than the time that passes. The part
of M_c that runs while compute waits for it counts in full, by the same sum.

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

__all__ = [
    "COMMUNICATION",
    "COMPUTE",
    "HOST",
    "Breakdown",
    "Simulation",
    "Task",
    "breakdown",
    "simulate",
]

Place = tuple[int, str]


class _Run:
    """A task, or all members of one collective, while it runs: the work left, the rate, and the
    time at which the two were last set."""

    __slots__ = ("lane", "left", "rate", "since", "start", "stream", "tasks", "version")

    def __init__(self, tasks: list[Task], now: float) -> None:
        self.tasks = tasks
        self.stream, self.lane = tasks[0].stream, tasks[0].lane
        self.left = max(task.duration for task in tasks)
        self.start = self.since = now
        self.rate = 1.0
        self.version = 0


class Simulation:
    """The state of one simulation: tasks are loaded, in program order on each device, and run. More
    may be loaded while the last ones of before have not started. A heap entry is the end of a run,
    or a place (device, lane) to look at again."""

    def __init__(self, num_devices: int, initial_memory: int, overlap: float) -> None:
        self.overlap, self.slow = overlap, 1.0 / (2.0 - overlap)
        self.now = 0.0
        self.sequence = 0
        self.heap: list[tuple[float, int, _Run | Place, int]] = []
        self.wake_times: dict[Place, float] = {}
        self.done: set[tuple[int, str]] = set()
        self.waiting: dict[tuple[int, str], set[str]] = defaultdict(set)
        self.arrived: dict[str, dict[int, Task]] = defaultdict(dict)
        self.running: list[dict[str, _Run]] = [{} for _ in range(num_devices)]  # by device and lane
        self.lanes: list[list[str]] = [[COMPUTE] for _ in range(num_devices)]
        self.queues: dict[Place, deque[tuple[Task, float]]] = defaultdict(deque)
        self.program: list[deque[Task]] = [deque() for _ in range(num_devices)]
        self.host_free = [0.0] * num_devices
        self.events: list[Event] = []
        self.held = [initial_memory] * num_devices
        self.samples = [
            MemorySample(device=d, time=0.0, nbytes=initial_memory) for d in range(num_devices)
        ]

    def load(self, tasks: Sequence[Task]) -> None:
        """Adds tasks behind those loaded before."""
        for task in tasks:
            self.program[task.device].append(task)
            if task.stream == COMMUNICATION and task.lane not in self.lanes[task.device]:
                self.lanes[task.device].append(task.lane)
        for device in range(len(self.program)):
            self.issue(device)

    def run_until(self, tasks: Sequence[Task]) -> None:
        """Runs until these tasks have ended."""
        left = {(task.device, task.id) for task in tasks} - self.done
        while left and self.heap:
            number = len(self.events)
            self.advance_clock()
            left.difference_update((e.device, e.id) for e in self.events[number:])

    def advance_clock(self) -> None:
        """Takes the next entry from the heap."""
        self.now, _, what, version = heapq.heappop(self.heap)
        if isinstance(what, tuple):
            self.wake_times.pop(what, None)
            self.look(*what)
        elif what.version == version:
            self.finish(what)

    def run(self) -> None:
        """Drains the heap. Raises `BadValue` if tasks are left that cannot start."""
        while self.heap:
            self.advance_clock()
        left = [task.id for program in self.program for task in program]
        left += [task.id for queue in self.queues.values() for task, _ in queue]
        if left:
            raise BadValue(
                f"{len(left)} tasks wait for tasks or devices that never arrive; the first is "
                f"{left[0]!r}"
            )

    def look(self, device: int, lane: str) -> None:
        """Starts what can start in one lane of one device."""
        if lane == HOST:
            self.issue(device)
        else:
            self.advance(device, lane)

    def issue(self, device: int) -> None:
        """Lets the host of `device` issue tasks until it must wait for one of its own (stream
        `host`)."""
        program = self.program[device]
        while program:
            task = program[0]
            if task.stream == HOST:
                self.start_host(device, task)
                break
            program.popleft()
            self.host_free[device] += task.host_duration
            self.queues[device, task.lane].append((task, self.host_free[device]))
        for lane in self.lanes[device]:
            self.advance(device, lane)

    def start_host(self, device: int, task: Task) -> None:
        """Runs a host task once its inputs are there; it holds the host queue."""
        if HOST in self.running[device] or self.blocked(task):
            return
        if not self.wait_until(self.host_free[device] + task.host_duration, (device, HOST)):
            self.program[device].popleft()
            self.start([task])

    def blocked(self, task: Task) -> bool:
        """Whether a dependency is open; if so, the task's lane is looked at again when it ends."""
        for dep in task.deps:
            if (task.device, dep) not in self.done:
                self.waiting[task.device, dep].add(task.lane)
                return True
        return False

    def wait_until(self, time: float, place: Place) -> bool:
        """Whether `time` is still to come; if so, the place is looked at again at that time."""
        if time <= self.now:
            return False
        if self.wake_times.get(place) != time:
            self.wake_times[place] = time
            self.push(time, place)
        return True

    def push(self, time: float, what: _Run | Place, version: int = 0) -> None:
        self.sequence += 1
        heapq.heappush(self.heap, (time, self.sequence, what, version))

    def advance(self, device: int, lane: str) -> None:
        """Starts the head of a lane if the lane is free, the host has issued it, and its inputs and
        its group are there."""
        queue = self.queues[device, lane]
        if not queue or lane in self.running[device]:
            return
        task, issued = queue[0]
        if self.blocked(task) or self.wait_until(issued, (device, lane)):
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
                self.queues[member, lane].popleft()
            self.start([members[member] for member in task.group])

    def start(self, tasks: list[Task]) -> None:
        """Starts a run, and sets the rates of those beside it."""
        run = _Run(tasks, self.now)
        for task in tasks:
            self.running[task.device][run.lane] = run
            self.hold(task.device, task.allocates)
        run.rate = self.rate_of(run)
        self.push(self.now + run.left / run.rate, run, run.version)
        self.disturb(run)

    def rate_of(self, run: _Run) -> float:
        """The rate of a run: the lowest over its devices."""
        if run.stream == HOST:
            return 1.0
        return min([self.rate_on(self.running[task.device], run, task) for task in run.tasks])

    def rate_on(self, running: dict[str, _Run], run: _Run, task: Task) -> float:
        """The rate that a device allows a run: lower beside the other kind of stream, and shared
        with others over its links."""
        if len(running) == 1:
            return 1.0
        beside, sharing = False, 1
        for other in running.values():
            if other is run or other.stream == HOST:
                continue
            if other.stream != run.stream:
                beside = True
            elif other.tasks[0].link == task.link:
                sharing += 1
        return (self.slow if beside else 1.0) / sharing

    def disturb(self, run: _Run) -> None:
        """Updates the rates of all runs on a run's devices, and moves the ends of those that
        change."""
        for task in run.tasks:
            running = self.running[task.device]
            if len(running) == 1 and run.lane in running:
                continue
            for other in running.values():
                if other is not run:
                    self.set_rate(other)

    def set_rate(self, run: _Run) -> None:
        rate = self.rate_of(run)
        if rate != run.rate:
            run.left = max(0.0, run.left - (self.now - run.since) * run.rate)
            run.since, run.rate = self.now, rate
            run.version += 1
            self.push(self.now + run.left / rate, run, run.version)

    def finish(self, run: _Run) -> None:
        """Ends a run on all its devices, then looks at the lanes that it blocked."""
        for task in run.tasks:
            del self.running[task.device][run.lane]
            self.hold(task.device, -task.frees)
            self.done.add((task.device, task.id))
            self.record(task, run.start)
            if run.stream == HOST:
                self.host_free[task.device] = self.now
        self.disturb(run)
        for task in run.tasks:
            for lane in sorted(self.waiting.pop((task.device, task.id), set()) | {run.lane}):
                self.look(task.device, lane)

    def record(self, task: Task, start: float) -> None:
        self.events.append(
            Event(
                id=task.id,
                kind=task.kind,
                phase=task.phase,
                device=task.device,
                stream=task.stream,
                start=start,
                end=self.now,
                path=task.path,
                channel=task.channel,
            )
        )

    def timeline(self) -> Timeline:
        """The timeline of all that has run."""
        events = tuple(
            sorted(self.events, key=lambda event: (event.start, event.device, event.end))
        )
        return Timeline(
            events=events,
            memory=tuple(self.samples),
            step_time=max((event.end for event in events), default=0.0),
            metadata={"overlap": self.overlap},
        )

    def hold(self, device: int, nbytes: int) -> None:
        if nbytes:
            self.held[device] += nbytes
            self.samples.append(
                MemorySample(device=device, time=self.now, nbytes=self.held[device])
            )


def simulate(
    tasks: Sequence[Task], *, num_devices: int, initial_memory: int, overlap: float
) -> Timeline:
    """The `Timeline` of `tasks` (in program order on each device) on devices that hold
    `initial_memory` bytes each.

    A task starts when the host has issued it (`host_duration` each, in program order), the task
    before it in its lane has ended, all its `deps` have ended and, in a `group`, all members are
    ready too; a collective takes as long as its longest member. The step time is the last end.
    Raises `BadValue` if tasks wait for each other or for a device outside the step.
    """
    if not 0 <= overlap <= 1:
        raise BadValue(f"overlap must be between 0 and 1, got {overlap}")
    outside = next((task for task in tasks if not 0 <= task.device < num_devices), None)
    if outside is not None:
        raise BadValue(
            f"task {outside.id!r} is on device {outside.device}, but there are {num_devices} devices"
        )
    simulation = Simulation(num_devices, initial_memory, overlap)
    simulation.load(tasks)
    simulation.run()
    return simulation.timeline()
