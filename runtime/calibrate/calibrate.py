"""`plan calibrate`: measures this machine and writes a hardware file that plans are made for and
compared with.

    measure (real processes, `ranks`) -> fit -> Cluster -> TOML, with a source for every figure

Compute is measured alone and by several ranks at once, since ranks share one CPU; collectives are
measured with as many ranks as will run.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from cost_models.atomic_write import write_atomically
from cost_models.cluster_text import cluster_text
from cost_models.errors import BadHardware, BadValue
from cost_models.machine import Cluster
from runtime.calibrate.measured import Settings
from runtime.calibrate.to_cluster import fit
from runtime.calibrate.unmeasured import base_cluster, cores, cpu_name
from runtime.launcher import launch

__all__ = ["calibrate", "calibrated_path", "this_machine"]

#: Called with what is being measured, in words, and the share done (0 to 1).
Progress = Callable[[str, float], None]

_SECONDS = (
    "measured by `plan calibrate`: on a CPU the median of single calls on evicted caches, core "
    "time; on CUDA of calls in a row, by events"
)


def this_machine() -> Path:
    """The path of this machine's calibration:
    `$XDG_CACHE_HOME/shardwright/hardware/this-machine.toml`."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (
        (Path(cache) if cache else Path.home() / ".cache")
        / "shardwright"
        / "hardware"
        / "this-machine.toml"
    )


def calibrated_path(hardware: str = "") -> str:
    """`hardware`, or by default the last calibration of this machine. Raises `BadHardware` if
    there is none."""
    if hardware:
        return hardware
    if not this_machine().is_file():
        raise BadHardware(
            f"this machine is not calibrated (no {this_machine()}): run `plan calibrate` first, or give --hardware"
        )
    return str(this_machine())


def calibrate(
    path: str | Path = "",
    *,
    device: str = "",
    max_ranks: int = 4,
    progress: Progress = lambda what, done: None,
    quick: bool = False,
    command: str = "plan calibrate",
) -> Cluster:
    """The measured cluster, written to `path` (by default `this_machine()`) whole or not at all.

    `device` is `cpu`, `cuda` or, by default, CUDA if there is any; at most `max_ranks` processes
    run at once (on CUDA, no more than there are devices). `quick` measures only the smallest
    shapes, in a few seconds, for tests. Raises `BadValue` for a device that does not exist or a
    path that cannot be written, `RunFailed` if a process fails.
    """
    kind = _device_kind(device)
    if max_ranks < 1:
        raise BadValue(f"number of ranks is {max_ranks}: give at least 1")
    ranks = min(max_ranks, torch.cuda.device_count()) if kind == "cuda" else max_ranks
    target = Path(path) if path else this_machine()
    settings = Settings(
        num_ranks=ranks, device=kind, num_cores=cores() if kind == "cpu" else ranks, quick=quick
    )
    progress("starting processes", 0.0)
    found = launch(
        "runtime.calibrate.ranks:measure",
        ranks,
        settings,
        on_event=lambda e: progress(str(e["what"]), float(e["done"])),
    )
    cluster = fit(found[0], base_cluster(kind))
    if not path:
        target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        target,
        cluster_text(cluster, provenance=_provenance(kind, ranks, command), sources=_SOURCES),
    )
    progress("done", 1.0)
    return cluster


def _device_kind(device: str) -> str:
    if device not in ("", "cpu", "cuda"):
        raise BadValue(f"unknown device {device!r}: cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise BadValue("there is no CUDA device: calibrate with --device cpu")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _provenance(kind: str, ranks: int, command: str) -> dict[str, str]:
    processor = torch.cuda.get_device_name(0) if kind == "cuda" else f"{cores()} x {cpu_name()}"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    if kind == "cuda":
        versions += f", CUDA {torch.version.cuda}"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor,
        "versions": versions,
        "command": command,
        "ranks": str(ranks),
    }


_SOURCES: dict[str, str] = {
    "peak_tflops": f"the fastest product of the table; {_SECONDS}",
    "memory_bandwidth_gb_s": "the largest element-wise op of the table",
    "kernel_overhead_us": "slope of an executor's step over programs of 32 and 128 tiny ops; on "
    "CUDA as shipped, and the slope is launch_overhead_us",
    "step_overhead_us": "intercept of the same, and of Adam's step over its number of parameters",
    "gemm_table": _SECONDS,
    "op_table": f"{_SECONDS}; flops and bytes as the planner's rules count them",
    "elementwise_table": "the rows of aten.add.Tensor, less the op's overhead",
    "contention": "core time while that many ranks compute / alone, mean over a kind's calls; "
    "more ranks than cores take turns",
    "collective_table": "wall time of a round of compute and the collective, less the compute's; "
    "packing included, isotonic in bytes",
    "kind_efficiency": "median of roofline / measured seconds over the kind's calls, for ops that the table lacks",
    "overlap": "zero on a CPU: gloo's threads and the ops share the cores",
    "memory_gib": "physical memory / max(cores, 4) on a CPU; the driver's figure on CUDA",
    "intra, library": "as shipped: only where the collective_table has no row",
}
