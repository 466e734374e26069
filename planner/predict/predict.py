"""The prediction of a Program: its simulated timeline, its time in parts, its memory by category.

Program, cluster -> Prediction. All ranks run the same instructions, and rank 0 has the largest
shards, so one device is simulated for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cost_models.machine import Cluster
from cost_models.timeline import MemorySample, Timeline
from planner.predict.footprint import CATEGORIES, Footprint, Held, footprint
from planner.predict.periods import Simulated, parts_of, simulated, whole
from planner.predict.tasks import PACKED, UNPACKED, instruction_of
from planner.predict.transfers import shared_bytes
from planner.program.program import Communicate, Program

__all__ = [
    "CATEGORIES", "PACKED", "UNPACKED", "Prediction", "Run", "instruction_of", "memory_by_category",
    "memory_over_time", "peak_position", "predict", "prediction_of", "run_of", "simulate_program",
]  # fmt: skip


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
    return prediction_of(run_of(program, cluster))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The simulation of a program, and its memory."""

    simulated: Simulated
    memory: Footprint

    @property
    def timeline(self) -> Timeline:
        """The timeline of all actions, with the memory over time."""
        timeline = whole(self.simulated)
        samples = _samples(self.simulated.program, self.memory, timeline)
        return replace(
            timeline,
            memory=tuple(
                MemorySample(device=0, time=time, nbytes=sum(held)) for time, held in samples
            ),
        )


def run_of(program: Program, cluster: Cluster) -> Run:
    """The simulation of a program on a cluster."""
    return Run(simulated=simulated(program, cluster), memory=footprint(program))


def prediction_of(run: Run) -> Prediction:
    """The prediction from a simulation."""
    parts = parts_of(run.simulated)
    return Prediction(
        step_time_s=run.simulated.step_time,
        compute_time_s=parts.compute,
        idle_time_s=parts.idle,
        exposed_communication_time_s=parts.exposed_communication,
        memory_bytes=_by_category(run.memory),
        shared_memory_bytes=shared_bytes(run.simulated.program),
    )


def simulate_program(program: Program, cluster: Cluster) -> Timeline:
    """The simulated timeline of a program, with the memory over time."""
    return run_of(program, cluster).timeline


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
    events = {(event.id, event.microbatch): event for event in timeline.events}
    now = 0.0
    yield now, memory.start
    ran = ((one, a.microbatch) for a in program.actions for one in program.bodies[a.body])
    for (instruction, microbatch), during, after in zip(
        ran, memory.during, memory.after, strict=True
    ):
        event = events[instruction.id, microbatch]
        started = isinstance(instruction, Communicate) and instruction.asynchronous
        now = now if started else max(now, event.start)
        yield now, during
        now = now if started else max(now, event.end)
        yield now, after
