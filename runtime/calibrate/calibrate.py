"""`plan calibrate`: measures this machine and writes a hardware file that plans are made for and
compared with.

    measure (real processes, `calibrate_ranks`) -> fit -> Cluster -> TOML with provenance and a source for every figure

Compute is measured alone and by several ranks at once, since ranks share one CPU; collectives with
as many ranks as will run.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from cost_models.atomic_write import write_atomically
from cost_models.cluster import cluster_text, load_cluster
from cost_models.device import KINDS, Device, ElementwiseRow, GemmRow, OpRow
from cost_models.errors import BadHardware, BadValue
from cost_models.machine import Cluster, CollectiveRow, ContentionRow
from cost_models.roofline import op_time
from runtime.calibrate.ranks import Measured, Settings
from runtime.launcher import launch

__all__ = ["calibrate", "calibrated_path", "fit", "shipped_for", "this_machine"]

#: Called with what is being measured, and how far it is (0 to 1).
Progress = Callable[[str, float], None]

_SECONDS = (
    "measured by `plan calibrate`: on a CPU the median of single calls on evicted caches, core "
    "time; on CUDA of calls in a row, by events"
)


def this_machine() -> Path:
    """Where the calibration of this machine is kept:
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

    `device` is `cpu`, `cuda` or, by default, what there is; `max_ranks` processes run at once at
    most (on CUDA, no more than there are devices). `quick` measures only the smallest shapes, in a
    few seconds, for tests. Raises `BadValue` for a device that is not there or a path that cannot
    be written, `RunFailed` if a process fails.
    """
    kind = _device_kind(device)
    if max_ranks < 1:
        raise BadValue(f"number of ranks is {max_ranks}: give at least 1")
    ranks = min(max_ranks, torch.cuda.device_count()) if kind == "cuda" else max_ranks
    target = Path(path) if path else this_machine()
    settings = Settings(
        num_ranks=ranks, device=kind, num_cores=_cores() if kind == "cpu" else ranks, quick=quick
    )
    progress("starting processes", 0.0)
    found = launch(
        "runtime.calibrate.ranks:measure",
        ranks,
        settings,
        on_event=lambda e: progress(str(e["what"]), float(e["done"])),
    )
    cluster = fit(found[0], _base(kind))
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


# ------------------------------------------------------------------------ from figures to a cluster


def fit(measured: Measured, base: Cluster) -> Cluster:
    """`base` with its figures replaced by measured ones.

    Peaks are the fastest products measured, so efficiencies are 1; bandwidth is that of the largest
    element-wise op. A kind's efficiency is the median of roofline / measured seconds over its
    larger calls, for ops that were not measured by name. Collectives' seconds are made to rise with
    their bytes.
    """
    device = _with_efficiencies(_device(measured, base.device), measured.ops)
    rows = defaultdict(list)
    for count, kind, slowdown in measured.shared:
        rows[count, kind].append(max(1.0, slowdown))
    contention = tuple(
        ContentionRow(num_devices=count, kind=kind, slowdown=statistics.geometric_mean(values))
        for (count, kind), values in sorted(rows.items())
    )
    if not base.device.gemm_tiles and not contention:  # one core: any second rank takes turns
        contention = tuple(ContentionRow(num_devices=1, kind=kind, slowdown=1.0) for kind in KINDS)
    contention += tuple(
        replace(row, kind="optimizer") for row in contention if row.kind == "elementwise"
    )
    return replace(
        base,
        name="this-machine",
        device=device,
        collective_table=_rising(measured.collectives),
        contention=contention,
    )


def _rising(rows: tuple[CollectiveRow, ...]) -> tuple[CollectiveRow, ...]:
    """The rows with seconds that never fall with bytes: of neighbours out of order, both become
    their geometric mean (isotonic regression by pooling adjacent violators; Barlow et al.,
    1972)."""
    out = []
    curves: dict[tuple[str, int, int], list[CollectiveRow]] = defaultdict(list)
    for row in rows:
        curves[row.kind, row.group_size, row.num_groups].append(row)
    for curve in curves.values():
        pools: list[list[float]] = []
        for row in sorted(curve, key=lambda r: r.nbytes):
            pools.append([row.seconds])
            while len(pools) > 1 and statistics.geometric_mean(
                pools[-2]
            ) > statistics.geometric_mean(pools[-1]):
                pools[-2:] = [pools[-2] + pools[-1]]
        seconds = [statistics.geometric_mean(pool) for pool in pools for _ in pool]
        ordered = sorted(curve, key=lambda r: r.nbytes)
        out += [replace(row, seconds=value) for row, value in zip(ordered, seconds, strict=True)]
    return tuple(out)


def _device(measured: Measured, base: Device) -> Device:
    peaks: dict[str, float] = {}
    for row in measured.gemms:
        name = {"float32": "fp32", "float64": "fp64", "bfloat16": "bf16"}[row.dtype]
        peaks[name] = max(peaks.get(name, 0.0), 2.0 * row.m * row.n * row.k / row.seconds)
    on_cpu = not base.gemm_tiles
    if not on_cpu:
        peaks = _with_shipped(peaks, base)
    fixed = (
        measured.op_overhead if on_cpu else base.kernel_overhead
    )  # on CUDA the host's launches are no part of a call's time
    adds = [row for row in measured.ops if row.op == "aten.add.Tensor"]
    table = [
        ElementwiseRow(
            nbytes=r.nbytes, bandwidth=r.nbytes / max(r.seconds - fixed, 0.1 * r.seconds)
        )
        for r in adds
    ]
    return replace(
        base,
        peak_flops=tuple(peaks.items()),
        gemm_efficiency=1.0,
        memory_bandwidth=table[-1].bandwidth,
        memory_efficiency=1.0,
        kernel_overhead=measured.op_overhead if on_cpu else base.kernel_overhead,
        launch_overhead=0.0 if on_cpu else measured.op_overhead,
        overlap=0.0 if on_cpu else base.overlap,
        gemm_half_work=_half_work(measured.gemms, peaks["fp32"], measured.op_overhead)
        if on_cpu
        else base.gemm_half_work,
        step_overhead=measured.step_overhead,
        lstm_step_overhead=measured.op_overhead if on_cpu else base.lstm_step_overhead,
        elementwise_table=tuple(table),
        gemm_table=measured.gemms,
        op_table=(*measured.ops, *_stand_ins(measured.ops)),
        kind_efficiency=(),
    )


def _with_shipped(peaks: dict[str, float], base: Device) -> dict[str, float]:
    """The measured peaks, and those that no product was measured in, at the share of the
    datasheet that bf16 reaches."""
    share = peaks["bf16"] / base.peak("bf16")
    return {**{name: share * peak for name, peak in base.peak_flops}, **peaks}


#: The op that stands for others of its kind that were not measured.
_STAND_INS = {
    "elementwise": "aten.mul.Tensor",
    "reduction": "aten.sum.dim_IntList",
    "norm": "aten.native_layer_norm.default",
    "softmax": "shardwright.cross_entropy",
    "copy": "aten.cat.default",
    "optimizer": "optimizer.adam",
}


def _stand_ins(ops: tuple[OpRow, ...]) -> list[OpRow]:
    return [replace(row, op=kind) for kind, op in _STAND_INS.items() for row in ops if row.op == op]


def _half_work(gemms: tuple[GemmRow, ...], peak: float, overhead: float) -> float:
    """Flops that a small product's fixed cost is worth: the median of (t - overhead) P - F where
    F is below 1e7."""
    small = [
        (r.seconds - overhead) * peak - 2.0 * r.m * r.n * r.k
        for r in gemms
        if r.dtype == "float32" and r.m * r.n * r.k < 5e6
    ]
    return max(0.0, statistics.median(small)) if small else 0.0


def _with_efficiencies(device: Device, ops: tuple[OpRow, ...]) -> Device:
    shares = defaultdict(list)
    for row in ops:
        plain = op_time(
            device,
            kind=row.kind,
            flops=row.flops,
            nbytes=row.nbytes,
            dtype=row.dtype,
            gemm=row.gemm,
            steps=row.steps,
        )
        if row.seconds > 5 * device.kernel_overhead:
            shares[row.kind].append(min(1.0, plain / row.seconds))
    return replace(
        device,
        kind_efficiency=tuple(
            (kind, statistics.median(found)) for kind, found in sorted(shares.items())
        ),
    )


# ----------------------------------------------------------------------------- what is not measured


def _base(kind: str) -> Cluster:
    """The shipped cluster that gives what is not measured: links, tiles; with this machine's
    memory and processors."""
    if kind == "cuda":
        return _cuda_base()
    base = load_cluster("cpu")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = _cores()
    return replace(
        base,
        device=replace(
            base.device, name=f"1 of {cores} cores, {_cpu_name()}", memory=memory // max(cores, 4)
        ),
    )


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cuda_base() -> Cluster:
    properties = torch.cuda.get_device_properties(0)
    base = load_cluster(
        shipped_for(properties.name, properties.total_memory) or "dgx-a100"
    )  # of others: only what is not measured
    device = replace(
        base.device,
        name=properties.name,
        memory=properties.total_memory,
        num_sms=properties.multi_processor_count,
    )
    return replace(
        base, device=device, devices_per_node=max(1, torch.cuda.device_count()), max_nodes=1
    )


def shipped_for(card: str, memory: int) -> str:
    """The shipped cluster whose devices are `card`, as the driver names it, of `memory` bytes;
    nothing where none is shipped: a PCIe card has fewer multiprocessors and slower memory than
    the SXM card of the same name."""
    slower = any(word in card for word in ("PCIe", "PCIE", "NVL", "MIG"))
    for word, cluster in _SHIPPED:
        if word in card.split() or (
            not slower and any(part.startswith(f"{word}-SXM") for part in card.split())
        ):
            small = word == "A100" and memory < 60 * 10**9
            return "" if slower else "dgx-a100-40gb" if small else cluster
    return ""


#: Words of a card's name, and the cluster that has such cards.
_SHIPPED = (
    ("H200", "dgx-h200"),
    ("H100", "dgx-h100"),
    ("A100", "dgx-a100"),
    ("V100", "p3.16xlarge"),
    ("L4", "g6.48xlarge"),
)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _provenance(kind: str, ranks: int, command: str) -> dict[str, str]:
    processor = torch.cuda.get_device_name(0) if kind == "cuda" else f"{_cores()} x {_cpu_name()}"
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
