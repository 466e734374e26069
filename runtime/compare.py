"""`plan compare`: the same plan simulated on the calibrated hardware and run on it, joined event by event.

    plan -> Program (timed on the hardware) -> simulated Timeline \\
                                            -> recorded Timelines -> join by event id -> Comparison -> table, JSON, PNG

What ranks wait for each other is no collective's fault: a collective's measured time is that of the rank that waited least, and
the rest stands in a row of its own.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cost_models.atomic_write import write_atomically
from cost_models.cluster import load_cluster
from cost_models.errors import BadValue
from cost_models.timeline import Event, Timeline
from planner.plan_file import Plan, program_of, read_plan, workload_of
from planner.predict import instruction_of, simulate_program
from planner.program import Program
from runtime.calibrate import calibrated_path
from runtime.launcher import Emit, launch

__all__ = ["Comparison", "KindRow", "compare", "compare_programs", "join_events", "write_comparison"]

#: Called with what is being done, and how far it is (0 to 1).
Progress = Callable[[str, float], None]

#: Rows of the table that are no op: waiting for other ranks, and what lies between the ops (the loss's read-out, Python).
WAITING, BETWEEN = "waiting for ranks", "between ops"
_NUM_RECORDED, _NUM_WARM = 5, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRow:
    """Seconds of one step spent in one kind of op, in one phase or in one collective. `error` is predicted / measured - 1,
    None where nothing was measured."""

    kind: str
    count: int
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float | None:
        return self.predicted_s / self.measured_s - 1 if self.measured_s > 0 else None

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"error": self.error}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Predicted and measured, of one device and one step. `events` has a row an event (id, kind, phase, ...);
    `measured_step_time_s` is the median of unrecorded steps, whose times are in `step_times_s`."""

    model: str
    mesh: str
    num_ranks: int
    predicted_step_time_s: float
    measured_step_time_s: float
    predicted_peak_memory_bytes: int
    measured_peak_memory_bytes: int
    recorded_step_time_s: float
    step_times_s: tuple[float, ...]
    by_kind: tuple[KindRow, ...]
    by_phase: tuple[KindRow, ...]
    by_collective: tuple[KindRow, ...]
    events: pd.DataFrame
    hardware: str

    @property
    def error(self) -> float:
        """Signed: predicted / measured - 1."""
        return self.predicted_step_time_s / self.measured_step_time_s - 1

    def table(self) -> pd.DataFrame:
        """Predicted and measured milliseconds by kind, phase and collective, largest first."""
        rows = [
            {
                "group": group, "name": row.kind, "ops": row.count, "predicted_ms": row.predicted_s * 1e3,
                "measured_ms": row.measured_s * 1e3, "error": row.error,
            }
            for group, part in (("kind", self.by_kind), ("phase", self.by_phase), ("collective", self.by_collective))
            for row in part
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def as_json(self) -> dict[str, Any]:
        """The keys of `plan compare --json`."""
        return {
            "model": self.model, "mesh": self.mesh, "num_ranks": self.num_ranks, "hardware": self.hardware,
            "predicted_step_time_s": self.predicted_step_time_s, "measured_step_time_s": self.measured_step_time_s,
            "error": self.error, "predicted_peak_memory_bytes": self.predicted_peak_memory_bytes,
            "measured_peak_memory_bytes": self.measured_peak_memory_bytes, "recorded_step_time_s": self.recorded_step_time_s,
            "step_times_s": list(self.step_times_s), "by_kind": [row.as_json() for row in self.by_kind],
            "by_phase": [row.as_json() for row in self.by_phase],
            "by_collective": [row.as_json() for row in self.by_collective],
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    plan: str
    num_steps: int
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    """What the ranks measured: unrecorded step times, and the recorded steps of every rank."""

    step_times_s: tuple[float, ...]
    timelines: tuple[tuple[Timeline, ...], ...]  # by recorded step, then by rank
    peak_memory_bytes: int


def compare(
    plan_path: str | Path,
    *,
    hardware: str = "",
    num_steps: int = 20,
    device: str = "",
    progress: Progress = lambda what, done: None,
) -> Comparison:
    """The plan's simulated step beside its measured one.

    `hardware` is a name or a file, by default the last calibration of this machine. Raises `BadHardware` where that is not
    there, `BadPlan` for a bad plan file, `BadValue` for fewer than 3 steps, `RunFailed` if a process fails.
    """
    if num_steps < 3:
        raise BadValue(f"number of steps is {num_steps}: a median needs at least 3")
    plan = read_plan(plan_path)
    name = calibrated_path(hardware)
    progress("simulating", 0.0)
    cluster = load_cluster(name, num_devices=plan.mesh.num_devices)
    program = program_of(plan, cluster)
    simulated = simulate_program(program, cluster)
    progress("starting processes", 0.1)
    ran = _run(plan_path, plan, num_steps, device, progress)
    progress("done", 1.0)
    return compare_programs(plan, cluster.name, program, simulated, ran)


def _run(plan_path: str | Path, plan: Plan, num_steps: int, device: str, progress: Progress) -> _Ran:
    request = _Request(plan=str(plan_path), num_steps=num_steps, device=device)
    found = launch(
        "runtime.compare:run_rank", plan.mesh.num_devices, request,
        on_event=lambda e: progress(f"step {e['step']}", 0.2 + 0.8 * e["step"] / (num_steps + _NUM_RECORDED)),
    )  # fmt: skip
    ran = found[0]
    assert isinstance(ran, _Ran)
    return ran


def run_rank(request: _Request, emit: Emit) -> _Ran | None:
    """One rank: warm-up, unrecorded steps, recorded steps; what was measured on rank 0."""
    import torch.distributed as dist

    from runtime.executor import Executor
    from runtime.groups import make_groups
    from runtime.parameters import build
    from runtime.verify import in_dtypes
    from runtime.worker import join

    plan = read_plan(request.plan)
    with join(plan.mesh.num_devices, request.device) as place:
        program = program_of(plan, rank=place.rank)
        workload = in_dtypes(build(lambda: workload_of(plan), 0), program)
        executor = Executor(program, workload, rank=place.rank, groups=make_groups(program, place.rank), device=place.device)
        local = executor.local_batch(workload.batch)
        executor.recorded_step(workload.batch)
        times = []
        gc.collect()
        for step in range(_NUM_WARM + request.num_steps):
            start = time.perf_counter()
            executor.step_local(local)
            times.append(time.perf_counter() - start)
            if place.rank == 0:
                emit({"step": step + 1})
        recorded: list[tuple[Timeline, ...]] = []
        for _ in range(_NUM_RECORDED):
            timeline, peak = executor.recorded_step(workload.batch), executor.peak_memory_bytes
            found: list[Any] = [(timeline, peak)]
            if place.num_ranks > 1:
                found = [None] * place.num_ranks
                dist.all_gather_object(found, (timeline, peak))
            recorded.append(tuple(t for t, _ in found))
    if place.rank:
        return None
    return _Ran(
        step_times_s=tuple(times[_NUM_WARM:]), timelines=tuple(recorded), peak_memory_bytes=max(peak for _, peak in found)
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- the join


def compare_programs(plan: Plan, hardware: str, program: Program, simulated: Timeline, ran: _Ran) -> Comparison:
    """The comparison of one simulated step and the measured ones."""
    events, waiting = join_events(simulated, ran.timelines, uneven=program.rank is not None)
    recorded = statistics.median(statistics.mean(t.step_time for t in step) for step in ran.timelines)
    between = max(0.0, recorded - _covered(ran.timelines))
    extra = [
        KindRow(kind=WAITING, count=0, predicted_s=0.0, measured_s=waiting),
        KindRow(kind=BETWEEN, count=0, predicted_s=0.0, measured_s=between),
    ]
    talks = events[events["stream"] == "communication"]
    return Comparison(
        model=plan.ask.model, mesh=str(plan.mesh), num_ranks=plan.mesh.num_devices, hardware=hardware,
        predicted_step_time_s=simulated.step_time, measured_step_time_s=statistics.median(ran.step_times_s),
        predicted_peak_memory_bytes=simulated.peak_memory, measured_peak_memory_bytes=ran.peak_memory_bytes,
        recorded_step_time_s=recorded, step_times_s=ran.step_times_s, events=events,
        by_kind=(*_group(events, "kind"), *(row for row in extra if row.measured_s > 0)),
        by_phase=_group(events, "phase"), by_collective=_group(talks, "kind"),
    )  # fmt: skip


def join_events(
    simulated: Timeline, recorded: Sequence[Sequence[Timeline]], *, uneven: bool = False
) -> tuple[pd.DataFrame, float]:
    """One row an event id, predicted and measured, and the seconds a step that ranks waited for each other in collectives.

    `recorded` holds the recorded steps, each the timelines of all ranks. The measured time is the median over steps of the mean
    over ranks, or of rank 0 where it has larger shards than others (`uneven`), since those are what is predicted; of a collective's,
    of the least over ranks. Every id stands in both, or one of our stages has lost an event.
    """
    predicted = {event.id: event for event in simulated.events if instruction_of(event.id) == event.id}
    seconds: dict[str, float] = defaultdict(float)  # a collective is recorded with its copies
    for event in simulated.events:
        seconds[instruction_of(event.id)] += event.duration
    per_step = [_measured_step(step, uneven) for step in recorded]
    for found in per_step:
        assert found.keys() == predicted.keys(), sorted(found.keys() ^ predicted.keys())[:5]
    rows = []
    waiting = 0.0
    for name, event in predicted.items():
        measured = statistics.median(step[name][0] for step in per_step)
        waiting += statistics.median(step[name][1] for step in per_step)
        rows.append(
            {
                "id": name, "kind": event.kind, "phase": event.phase, "stream": event.stream, "path": event.path,
                "predicted_s": seconds[name], "measured_s": measured,
            }
        )  # fmt: skip
    return pd.DataFrame(rows), waiting


def _measured_step(timelines: Sequence[Timeline], uneven: bool) -> dict[str, tuple[float, float]]:
    """id -> (seconds, seconds of waiting) of one recorded step on all ranks."""
    durations: dict[str, list[float]] = defaultdict(list)
    talks: set[str] = set()
    for timeline in timelines:
        for event in timeline.events:
            durations[event.id].append(event.duration)
            if event.stream == "communication":
                talks.add(event.id)
    for name, found in durations.items():
        assert len(found) == len(timelines), f"{name} was recorded on {len(found)} of {len(timelines)} ranks"
    return {
        name: (min(found), statistics.mean(found) - min(found))
        if name in talks
        else (found[0] if uneven else statistics.mean(found), 0.0)
        for name, found in durations.items()
    }


def _covered(recorded: Sequence[Sequence[Timeline]]) -> float:
    """Seconds of a step in which some event runs: the median over steps of the mean over ranks."""
    return statistics.median(statistics.mean(_union(timeline.events) for timeline in step) for step in recorded)


def _union(events: Sequence[Event]) -> float:
    total, until = 0.0, 0.0
    for event in sorted(events, key=lambda e: e.start):
        total += max(0.0, event.end - max(event.start, until))
        until = max(until, event.end)
    return total


def _group(events: pd.DataFrame, key: str) -> tuple[KindRow, ...]:
    """Sums by the values of a column, largest measured first."""
    rows = []
    for name, part in events.groupby(key):
        predicted, measured = float(part["predicted_s"].sum()), float(part["measured_s"].sum())
        rows.append(KindRow(kind=str(name), count=len(part), predicted_s=predicted, measured_s=measured))
    return tuple(sorted(rows, key=lambda row: -row.measured_s))


# ------------------------------------------------------------------------------------------------- files


def write_comparison(comparison: Comparison, folder: str | Path) -> dict[str, str]:
    """Writes `compare.json` and `compare.png` to `folder`, each whole or not at all; their paths by kind.

    Raises `BadValue` where they cannot be written.
    """
    from runtime.compare_picture import picture

    where = Path(folder)
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadValue(f"{where}: cannot be made ({error.strerror}); give another folder") from error
    write_atomically(where / "compare.json", json.dumps(comparison.as_json(), indent=1) + "\n")
    write_atomically(where / "compare.png", picture(comparison))
    return {"json": str(where / "compare.json"), "png": str(where / "compare.png")}
