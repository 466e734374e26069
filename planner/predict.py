"""What a Program will do: its simulated timeline, its time in parts, and its memory by category.

Program, cluster -> Prediction. All ranks run the same instructions, on shards of which rank 0 has the largest, so one device is
simulated for all.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from cost_models.breakdown import breakdown
from cost_models.cluster import Cluster
from cost_models.collectives import collective_model
from cost_models.roofline import host_time
from cost_models.simulator import Task, simulate
from cost_models.timeline import Timeline
from planner.program import Communicate, Compute, Instruction, Program
from planner.schedule import reads, writes

__all__ = [
    "CATEGORIES", "Prediction", "memory_by_category", "memory_over_time", "peak_position", "predict", "simulate_program",
]  # fmt: skip

#: The categories of memory, in the order of the report. `inputs` are the batch; `gathered` what communication made;
#: `temporaries` what backward holds besides gradients.
CATEGORIES = ("parameters", "optimizer", "gradients", "activations", "gathered", "temporaries", "inputs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One step, predicted: seconds, and bytes of one device by category at the moment of its peak."""

    step_time_s: float
    compute_time_s: float
    exposed_communication_time_s: float
    idle_time_s: float
    memory_bytes: dict[str, int]

    @property
    def total_memory_bytes(self) -> int:
        return sum(self.memory_bytes.values())


def predict(program: Program, cluster: Cluster) -> Prediction:
    """The prediction for one device: all are alike, or this is the one with the largest shards."""
    timeline = simulate_program(program, cluster)
    parts = breakdown(timeline, 0)
    return Prediction(
        step_time_s=timeline.step_time, compute_time_s=parts.compute, idle_time_s=parts.idle,
        exposed_communication_time_s=parts.exposed_communication, memory_bytes=memory_by_category(program),
    )  # fmt: skip


def simulate_program(program: Program, cluster: Cluster) -> Timeline:
    """The timeline of device 0, with the ids of the program's instructions.

    The order is the executor's. Kernels and collectives that are not asynchronous follow each other: on NCCL the compute stream
    waits for such a collective and the host runs on, on gloo the host waits. An asynchronous one starts after what stands before
    it, runs in the stream of its communicator, and is waited for by the first instruction that reads or frees its results.
    """
    tasks = _Tasks(program, cluster)
    return simulate(
        [tasks.task(instruction) for instruction in program.instructions],
        num_devices=1,
        initial_memory=sum(program.initial_bytes.values()),
        overlap=cluster.device.overlap,
    )


class _Tasks:
    """Makes the simulator's tasks, one an instruction, in the order of the program."""

    def __init__(self, program: Program, cluster: Cluster) -> None:
        self.program, self.cluster = program, cluster
        self.kept = {state.value for state in program.parameters}
        self.writer: dict[int, str] = {}
        self.line = ""  # the last instruction of those that follow each other
        self.blocking = False  # whether that is a collective
        self.channels: dict[tuple[int, ...], tuple[str, str]] = {}

    def task(self, instruction: Instruction) -> Task:
        """The task of the next instruction."""
        communicates = isinstance(instruction, Communicate) and instruction.kind != "slice"
        kind = "copy" if communicates else instruction.kind
        made = writes(instruction)
        channel, link = self._channel(instruction.axes) if communicates else ("", "")  # type: ignore[union-attr]
        deps = [self.writer[v] for v in (*reads(instruction), *instruction.frees) if v in self.writer]
        if (communicates or self.blocking) and self.line:
            deps.append(self.line)
        self.writer.update(dict.fromkeys(made, instruction.id))
        if not (communicates and instruction.asynchronous):  # type: ignore[union-attr]
            self.line, self.blocking = instruction.id, communicates
        nbytes = self.program.value_bytes
        return Task(
            id=instruction.id, kind=instruction.kind, phase=instruction.phase, path=instruction.path, device=0,
            stream="communication" if communicates else "compute", duration=instruction.time, channel=channel, link=link,
            host_duration=0.0 if instruction.kind in ("view", "slice") else host_time(self.cluster.device, kind),
            deps=tuple(dict.fromkeys(deps)), allocates=sum(nbytes[v] for v in made if v not in self.kept),
            frees=sum(nbytes[v] for v in instruction.frees),
        )  # fmt: skip

    def _channel(self, axes: tuple[int, ...]) -> tuple[str, str]:
        """The name of the communicator of `axes`, and the class of the links that it crosses."""
        if axes not in self.channels:
            mesh = self.program.mesh
            link = collective_model(self.cluster, mesh.sizes, axes).link_class
            self.channels[axes] = (",".join(mesh.names[axis] for axis in axes), link)
        return self.channels[axes]


# ------------------------------------------------------------------------------------------------- memory


def memory_by_category(program: Program) -> dict[str, int]:
    """Bytes of one device by category, at the instruction where their sum is largest."""
    return _walk(program)[0]


def peak_position(program: Program) -> str:
    """The id of the instruction at which memory peaks."""
    return _walk(program)[1]


def memory_over_time(program: Program, timeline: Timeline) -> tuple[list[float], dict[str, list[int]]]:
    """The times at which memory changes, from 0 on, and the bytes of every category from each of them on."""
    category, kept = _categories(program), {state.value for state in program.parameters}
    events = {event.id: event for event in timeline.events}
    changes: list[tuple[float, int, str]] = []
    for instruction in program.instructions:
        event = events[instruction.id]
        made = [(category[v], program.value_bytes[v]) for v in writes(instruction) if v not in kept]
        changes += [(event.start, nbytes, name) for name, nbytes in made]
        changes += [(event.end, -program.value_bytes[v], category.get(v, "inputs")) for v in instruction.frees]
    held = {name: program.initial_bytes.get(name, 0) for name in CATEGORIES}
    times, out = [0.0], {name: [held[name]] for name in CATEGORIES}
    for time, nbytes, name in sorted(changes, key=lambda change: change[0]):
        held[name] += nbytes
        if time > times[-1]:
            times.append(time)
            for other in CATEGORIES:
                out[other].append(held[other])
        else:
            out[name][-1] = held[name]
    return times, out


def _walk(program: Program) -> tuple[dict[str, int], str]:
    category = _categories(program)
    held: dict[str, int] = defaultdict(int, program.initial_bytes)
    total = sum(held.values())
    best, peak, where = dict(held), total, "start"
    kept = {state.value for state in program.parameters}
    for instruction in program.instructions:
        for value in writes(instruction):
            if value not in kept:
                held[category[value]] += program.value_bytes[value]
                total += program.value_bytes[value]
        if total > peak:
            best, peak, where = dict(held), total, instruction.id
        for value in instruction.frees:
            held[category.get(value, "inputs")] -= program.value_bytes[value]
            total -= program.value_bytes[value]
    return {name: best.get(name, 0) for name in CATEGORIES}, where


def _categories(program: Program) -> dict[int, str]:
    """Gradients are what the update reads, and what is reduced for it; then by who wrote the value and when."""
    gradients: set[int] = set()
    for instruction in reversed(program.instructions):
        if instruction.kind == "optimizer" or (
            gradients & set(writes(instruction)) and (isinstance(instruction, Communicate) or instruction.kind == "view")
        ):
            gradients.update(reads(instruction))
    out: dict[int, str] = {}
    for instruction in program.instructions:
        for value in writes(instruction):
            if value in gradients:
                out[value] = "gradients"
            elif isinstance(instruction, Compute):
                out[value] = "activations" if instruction.phase == "forward" else "temporaries"
            else:
                out[value] = "gathered"
    return out
