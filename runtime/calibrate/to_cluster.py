"""Measured figures -> `Cluster`: peaks, tables, efficiencies, slowdowns of ranks that compute at
once."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import replace

from cost_models.device import KINDS, Device, ElementwiseRow, GemmRow, OpRow
from cost_models.machine import Cluster, CollectiveRow, ContentionRow
from cost_models.roofline import op_time
from planner.graph.fused import FUSED
from runtime.calibrate.measured import Measured

__all__ = ["fit"]


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
    if not base.device.gemm_tiles and not contention:  # one core: a second rank takes turns on it
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
    """The rows with seconds that never fall with bytes: neighbours that are out of order both get
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
    # On CUDA the host's launches are no part of a call's time.
    fixed = measured.op_overhead if on_cpu else base.kernel_overhead
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
        kernel_overhead=fixed,
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
    """The measured peaks; formats in which no product was measured get the share of the datasheet's
    peak that bf16 reaches."""
    share = peaks["bf16"] / base.peak("bf16")
    return {**{name: share * peak for name, peak in base.peak_flops}, **peaks}


#: The op that represents those of its kind that were not measured.
_STAND_INS = {
    "elementwise": "aten.mul.Tensor",
    "fused": FUSED,
    "reduction": "aten.sum.dim_IntList",
    "norm": "aten.native_layer_norm.default",
    "softmax": "shardwright.cross_entropy",
    "copy": "aten.cat.default",
    "optimizer": "optimizer.adam",
}


def _stand_ins(ops: tuple[OpRow, ...]) -> list[OpRow]:
    return [replace(row, op=kind) for kind, op in _STAND_INS.items() for row in ops if row.op == op]


def _half_work(gemms: tuple[GemmRow, ...], peak: float, overhead: float) -> float:
    """The fixed cost of a small product, in flops: the median of (t - overhead) P - F over products
    with F below 1e7."""
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
