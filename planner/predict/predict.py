"""The prediction of a Program: its simulated timeline, its time in parts, its memory by category.

Program, cluster -> Prediction. All ranks run the same instructions, and rank 0 has the largest
shards, so one device is simulated for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cost_models.breakdown import breakdown
from cost_models.collectives import collective_model
from cost_models.machine import Cluster
from cost_models.roofline import host_time
from cost_models.simulator import Task, simulate
from cost_models.timeline import MemorySample, Timeline
from planner.predict.footprint import CATEGORIES, Footprint, Held, footprint
from planner.predict.transfers import shared_bytes
from planner.program.program import Communicate, Instruction, Program, waits_for, writes

__all__ = [
    "CATEGORIES", "PACKED", "UNPACKED", "Prediction", "Run", "instruction_of", "memory_by_category",
    "memory_over_time", "peak_position", "predict", "prediction_of", "run_of", "simulate_program",
]  # fmt: skip


#: Endings of the ids of events that are copies before and after a collective.
PACKED, UNPACKED = ".packed", ".unpacked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The prediction of one step: seconds, and bytes per device by category at the peak; beside
    these, `shared_memory_bytes` of the memory through which ranks of one machine send."""

    step_time_s: float
    compute_time_s: float
    exposed_communication_time_s: float
    idle_time_s: float
    memory_bytes: dict[str, int]
    shared_memory_bytes: int = 0

    @property
    def total_memory_bytes(self) -> int:
        return sum(self.memory_bytes.values())


def predict(program: Program, cluster: Cluster) -> Prediction:
    """The prediction per device; if devices differ, for the one with the largest shards."""
    run = Run(timeline=_without_memory(program, cluster), memory=footprint(program))
    return prediction_of(program, run)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The simulation of a program: its timeline and its memory."""

    timeline: Timeline
    memory: Footprint


def run_of(program: Program, cluster: Cluster) -> Run:
    """The simulation of a program on a cluster."""
    memory = footprint(program)
    return Run(timeline=simulate_program(program, cluster, memory), memory=memory)


def prediction_of(program: Program, run: Run) -> Prediction:
    """The prediction from a simulation."""
    parts = breakdown(run.timeline, 0)
    return Prediction(
        step_time_s=run.timeline.step_time,
        compute_time_s=parts.compute,
        idle_time_s=parts.idle,
        exposed_communication_time_s=parts.exposed_communication,
        memory_bytes=_by_category(run.memory),
        shared_memory_bytes=shared_bytes(program),
    )


def simulate_program(
    program: Program, cluster: Cluster, memory: Footprint | None = None
) -> Timeline:
    """The timeline of device 0, with the ids of the program's instructions; copies around a
    collective are events of their own, with its id and `PACKED` or `UNPACKED`. `memory` is the
    program's, if known.

    The order is the executor's. Kernels, copies and synchronous collectives follow each other: on
    NCCL the compute stream waits for such a collective and the host runs on, on gloo the host
    waits. An asynchronous collective starts after the instruction before it, runs in the stream of
    its communicator, and is waited for by the first instruction that reads or frees its results.
    """
    timeline = _without_memory(program, cluster)
    samples = _samples(program, memory or footprint(program), timeline)
    return replace(
        timeline,
        memory=tuple(MemorySample(device=0, time=time, nbytes=sum(held)) for time, held in samples),
    )


def _without_memory(program: Program, cluster: Cluster) -> Timeline:
    """The timeline alone: a prediction needs the most that is held, not when."""
    tasks = _Tasks(program, cluster)
    for instruction in program.instructions:
        tasks.add(instruction)
    tasks.wait(list(tasks.under_way))
    return simulate(tasks.out, num_devices=1, initial_memory=0, overlap=cluster.device.overlap)


def instruction_of(event: str) -> str:
    """The id of the instruction that an event belongs to."""
    return event.removesuffix(PACKED).removesuffix(UNPACKED)


class _Tasks:
    """Makes the simulator's tasks, in the order of the program."""

    def __init__(self, program: Program, cluster: Cluster) -> None:
        self.program, self.cluster = program, cluster
        self.writer: dict[int, str] = {}
        self.line = ""  # the last of the tasks that follow each other
        self.blocking = False  # whether it is a collective
        # What an asynchronous collective writes that nothing has waited for.
        self.under_way: dict[int, Communicate] = {}
        self.channels: dict[tuple[int, ...], tuple[str, str]] = {}
        self.out: list[Task] = []

    def add(self, instruction: Instruction) -> None:
        """Adds the tasks of the next instruction."""
        used = waits_for(instruction)
        self.wait([value for value in used if value in self.under_way])
        talks = isinstance(instruction, Communicate) and instruction.kind != "slice"
        if talks and instruction.packing:  # type: ignore[union-attr]
            self._copy(instruction, PACKED, instruction.packing, used)  # type: ignore[union-attr]
        channel, link = self._channel(instruction.axes) if talks else ("", "")  # type: ignore[union-attr]
        made = writes(instruction)
        self.out.append(
            Task(
                id=instruction.id,
                kind=instruction.kind,
                phase=instruction.phase,
                path=instruction.path,
                device=0,
                stream="communication" if talks else "compute",
                duration=instruction.time,
                channel=channel,
                link=link,
                host_duration=self._dispatch(instruction),
                deps=self._deps(used, talks),
            )
        )
        self.writer.update(dict.fromkeys(made, instruction.id))
        if talks and instruction.asynchronous:  # type: ignore[union-attr]
            self.under_way.update(dict.fromkeys(made, instruction))  # type: ignore[arg-type]
            return
        self.line, self.blocking = instruction.id, talks
        if talks:
            self._unpack(instruction)  # type: ignore[arg-type]

    def wait(self, values: list[int]) -> None:
        """Adds the tasks that follow the end of the collectives that write `values`."""
        for value in values:
            if value in self.under_way:
                found = self.under_way[value]
                for result in found.results:
                    del self.under_way[result]
                self._unpack(found)

    def _unpack(self, instruction: Communicate) -> None:
        if instruction.unpacking:
            self._copy(instruction, UNPACKED, instruction.unpacking, instruction.results)
            self.writer.update(dict.fromkeys(instruction.results, self.line))

    def _copy(
        self, instruction: Instruction, suffix: str, seconds: float, used: tuple[int, ...]
    ) -> None:
        self.out.append(
            Task(
                id=instruction.id + suffix,
                kind="copy",
                phase=instruction.phase,
                path=instruction.path,
                device=0,
                stream="compute",
                duration=seconds,
                host_duration=host_time(self.cluster.device, "copy"),
                deps=self._deps(used, talks=False),
            )
        )
        self.line, self.blocking = instruction.id + suffix, False

    def _dispatch(self, instruction: Instruction) -> float:
        """Seconds of the host to dispatch an instruction; 0 for a view."""
        looks = instruction.kind == "view" or (instruction.kind == "slice" and not instruction.time)
        kind = "copy" if isinstance(instruction, Communicate) else instruction.kind
        return 0.0 if looks else host_time(self.cluster.device, kind)

    def _deps(self, used: tuple[int, ...], talks: bool) -> tuple[str, ...]:
        deps = [self.writer[v] for v in used if v in self.writer]
        if (talks or self.blocking) and self.line:
            deps.append(self.line)
        return tuple(dict.fromkeys(deps))

    def _channel(self, axes: tuple[int, ...]) -> tuple[str, str]:
        """The name of the communicator of `axes`, and the class of the links that it crosses."""
        if axes not in self.channels:
            mesh = self.program.mesh
            link = collective_model(self.cluster, mesh.sizes, axes).link_class
            self.channels[axes] = (",".join(mesh.names[axis] for axis in axes), link)
        return self.channels[axes]


# ------------------------------------------------------------------------------------------- memory


def memory_by_category(program: Program) -> dict[str, int]:
    """Bytes per device by category, at the moment at which their sum is largest."""
    return _by_category(footprint(program))


def _by_category(memory: Footprint) -> dict[str, int]:
    held, _ = memory.peak
    return dict(zip(CATEGORIES, held, strict=True))


def peak_position(program: Program) -> str:
    """The id of the instruction at which memory peaks."""
    _, place = footprint(program).peak
    return program.instructions[place].id if place >= 0 else "start"


def memory_over_time(
    program: Program, timeline: Timeline, memory: Footprint | None = None
) -> tuple[list[float], dict[str, list[int]]]:
    """The times at which memory changes, from 0 on, and the bytes of every category from each time
    on; `memory` is the program's, if known."""
    times: list[float] = []
    rows: list[Held] = []
    for time, held in _samples(program, memory or footprint(program), timeline):
        times.append(time)
        rows.append(held)
    return times, {name: [row[number] for row in rows] for number, name in enumerate(CATEGORIES)}


def _samples(
    program: Program, memory: Footprint, timeline: Timeline
) -> Iterator[tuple[float, Held]]:
    """Times, which never fall, and the bytes by category from each on. The order is the program's,
    since the allocator sees the host's order: an instruction's memory counts from its start, but
    not before that of the instruction before it."""
    events = {event.id: event for event in timeline.events}
    now = 0.0
    yield now, memory.start
    for instruction, during, after in zip(
        program.instructions, memory.during, memory.after, strict=True
    ):
        event = events[instruction.id]
        started = isinstance(instruction, Communicate) and instruction.asynchronous
        now = now if started else max(now, event.start)
        yield now, during
        now = now if started else max(now, event.end)
        yield now, after
