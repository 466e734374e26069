"""Seconds of the loops that planning spends its time in: the simulator's events, and the times of
collectives.

python benchmarks/loops.py [--runs 3]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

from cost_models.cluster import load_cluster
from cost_models.collectives import collective_model
from cost_models.simulator import simulate
from cost_models.task import Task

_RANKS, _STEPS, _CALLS = 8, 1250, 100_000


def simulated() -> int:
    """Ten thousand tasks on eight devices, a fifth of them collectives."""
    everyone = tuple(range(_RANKS))
    tasks = []
    for number in range(_STEPS):
        for device in everyone:
            task = partial(
                Task,
                id=f"t{number}",
                kind="gemm",
                phase="forward",
                device=device,
                host_duration=5e-6,
            )
            if number % 5:
                before = (f"t{number - 2}",) if number > 1 else ()
                tasks.append(
                    task(stream="compute", duration=1e-5, deps=before, allocates=9, frees=9)
                )
            else:
                tasks.append(task(stream="communication", duration=2e-5, group=everyone))
    return len(simulate(tasks, num_devices=_RANKS, initial_memory=0, overlap=0.5).events)


def collective_times() -> int:
    """A hundred thousand times of an all-reduce, each of another size."""
    model = collective_model(load_cluster("dgx-h100", num_devices=64), (4, 2, 8), (1, 2))
    for nbytes in range(_CALLS):
        model.time("all_reduce", nbytes)
    return _CALLS


def seconds(loop: Callable[[], int]) -> tuple[int, float]:
    """How often the loop went round, and how long it took."""
    start = time.perf_counter()
    return loop(), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    for loop in (simulated, collective_times):
        runs = [seconds(loop) for _ in range(asked.runs)]
        times = [taken for _, taken in runs]
        print(
            f"{loop.__name__:20s} {runs[0][0]:7d}  {statistics.median(times):.3f} s median "
            f"({min(times):.3f} to {max(times):.3f})"
        )


if __name__ == "__main__":
    main()
