"""`plan compare`: a plan is simulated on the calibrated hardware and run on it, and the two are
joined event by event.

    plan -> Program (timed on the hardware) -> simulated Timeline \\
                                            -> recorded Timelines -> join by event id -> Comparison -> table, JSON, PNG
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cost_models.atomic_write import write_atomically
from cost_models.cluster import load_cluster
from cost_models.errors import BadValue
from cost_models.timeline import Timeline
from planner.plans.pipeline_replay import pipeline_of
from planner.plans.plan import Plan
from planner.plans.plan_file import read_plan
from planner.plans.replay import program_of, workload_of
from planner.predict.predict import simulate_program
from runtime.calibrate.calibrate import calibrated_path
from runtime.compare.comparison import Comparison, Ran
from runtime.compare.join import compare_programs
from runtime.compare.stages import compare_pipelines
from runtime.launcher import Emit, launch

__all__ = ["compare", "run_rank", "write_comparison"]

#: Called with the current activity, in words, and the share done (0 to 1).
Progress = Callable[[str, float], None]

_NUM_RECORDED, _NUM_WARM = 5, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    plan: str
    num_steps: int
    device: str


def compare(
    plan_path: str | Path,
    *,
    hardware: str = "",
    num_steps: int = 20,
    device: str = "",
    progress: Progress = lambda what, done: None,
) -> Comparison:
    """The plan's simulated step beside its measured one.

    `hardware` is a name or a file, by default the last calibration of this machine. Raises
    `BadHardware` if that does not exist, `BadPlan` for a bad plan file, `BadValue` for fewer than 3
    steps, `RunFailed` if a process fails.
    """
    if num_steps < 3:
        raise BadValue(f"number of steps is {num_steps}: a median needs at least 3")
    plan = read_plan(plan_path)
    name = calibrated_path(hardware)
    progress("simulating", 0.0)
    cluster = load_cluster(name, num_devices=plan.mesh.num_devices)
    if plan.pipeline is not None:
        pipeline = pipeline_of(plan, cluster)
        ran = _run(plan_path, plan, num_steps, device, progress)
        progress("done", 1.0)
        return compare_pipelines(plan, cluster, pipeline, ran)
    program = program_of(plan, cluster)
    simulated = simulate_program(program, cluster)
    ran = _run(plan_path, plan, num_steps, device, progress)
    progress("done", 1.0)
    return compare_programs(plan, cluster.name, program, simulated, ran)


def _run(plan_path: str | Path, plan: Plan, num_steps: int, device: str, progress: Progress) -> Ran:
    progress("starting processes", 0.1)
    request = _Request(plan=str(plan_path), num_steps=num_steps, device=device)
    found = launch(
        "runtime.compare.compare:run_rank",
        plan.mesh.num_devices,
        request,
        on_event=lambda e: progress(
            f"step {e['step']}", 0.2 + 0.8 * e["step"] / (num_steps + _NUM_RECORDED)
        ),
    )
    ran = found[0]
    assert isinstance(ran, Ran)
    return ran


def run_rank(request: _Request, emit: Emit) -> Ran | None:
    """One rank: warm-up, unrecorded steps, recorded steps. Returns the measurements on rank 0, None
    on the others."""
    import torch.distributed as dist

    from runtime.parameters import build
    from runtime.plain_trainer import in_dtypes
    from runtime.runner import lowered, make_runner
    from runtime.worker import join

    plan = read_plan(request.plan)
    with join(plan.mesh.num_devices, request.device) as place:
        program = lowered(plan, place.rank)
        workload = in_dtypes(build(lambda: workload_of(plan), 0), program)
        executor = make_runner(program, workload, place.rank, place.device)
        local: Any = executor.local_batch(workload.batch)
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
    return Ran(
        step_times_s=tuple(times[_NUM_WARM:]),
        timelines=tuple(recorded),
        peak_memory_bytes=max(peak for _, peak in found),
    )


def write_comparison(comparison: Comparison, folder: str | Path) -> dict[str, str]:
    """Writes `compare.json` and `compare.png` to `folder`, each whole or not at all; returns their
    paths by kind.

    Raises `BadValue` if they cannot be written.
    """
    from runtime.compare.picture import picture

    where = Path(folder)
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadValue(
            f"{where}: cannot be made ({error.strerror}); give another folder"
        ) from error
    write_atomically(where / "compare.json", json.dumps(comparison.as_json(), indent=1) + "\n")
    write_atomically(where / "compare.png", picture(comparison))
    return {"json": str(where / "compare.json"), "png": str(where / "compare.png")}
