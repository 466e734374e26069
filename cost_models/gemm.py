"""Device seconds of one matrix product: tile and wave quantisation, or a smooth model, corrected by
measured shapes.

With tiles (Tm, Tn), S SMs, peak P and a split of k in s parts:

    tiles = batch * ceil(m / Tm) * ceil(n / Tn) * s        waves = ceil(tiles / S)
    t = waves * (ceil(k / s) + k0) * max(2 (Tm Tn + a0) / (P e / S), l0) + reduction of partial sums

of which the best of a few tiles and splits counts, as in cuBLAS's heuristic. k0 (`gemm_half_k`) is
the fill and drain of a tile's pipeline, a0 (`gemm_tile_half_area`) the operand traffic of small
tiles, l0 (`gemm_k_latency`) the memory latency of a step along k that a small tile cannot hide. The
first two represent a fixed time and bandwidth, so they are given at the device's 16-bit rate and
shrink with the rate of slower formats. Source: MODELLING 5.2; NVIDIA, "Matrix Multiplication
Background User's Guide".
"""

from __future__ import annotations

import math
from functools import lru_cache

from cost_models.device import Device, GemmRow
from cost_models.memory import dtype_bytes

__all__ = ["gemm_seconds"]

#: Splits of k that are tried. Source: cuBLAS and CUTLASS split-k heuristics use small powers of
#: two.
_SPLITS = (1, 2, 4, 8, 16, 32)
#: Bytes moved per partial sum: fp32, written and read once. Source: CUTLASS split-k documentation.
_PARTIAL_SUM_BYTES = 8
#: Number of measured shapes in a correction, the nearest in (log m, log n, log k). Our choice: one
#: per direction.
_NEIGHBOURS = 3


@lru_cache(maxsize=65536)
def gemm_seconds(
    device: Device, shape: tuple[int, int, int, int], nbytes: float, dtype: str, peak: float
) -> float:
    """Seconds of `batch` products (m, k) @ (k, n), without the kernel's overhead, at `peak` flops/s
    of the datasheet.

    max(compute, nbytes / (bandwidth * efficiency)); if the device has measured products of `dtype`,
    times the ratio of measured to modelled seconds at the nearest shapes.
    """
    modelled = _modelled(device, shape, nbytes, peak)
    rows = tuple(row for row in device.gemm_table if row.dtype == dtype)
    return modelled * _correction(device, rows, shape, peak) if rows else modelled


def _modelled(
    device: Device, shape: tuple[int, int, int, int], nbytes: float, peak: float
) -> float:
    compute = _tiled(device, shape, peak) if device.gemm_tiles else _smooth(device, shape, peak)
    return max(compute, nbytes / (device.memory_bandwidth * device.memory_efficiency))


def _smooth(device: Device, shape: tuple[int, int, int, int], peak: float) -> float:
    """eff = e w / (w + w0) with w the flops per SM, so t = (flops + w0 S) / (P e): for devices
    without known tiles."""
    batch, m, n, k = shape
    flops = 2.0 * batch * m * n * k
    return (
        (flops + device.gemm_half_work * device.num_sms) / (peak * device.gemm_efficiency)
        if flops
        else 0.0
    )


def _tiled(device: Device, shape: tuple[int, int, int, int], peak: float) -> float:
    batch, m, n, k = shape
    if not batch * m * n * k:
        return 0.0
    sm_rate = peak * device.gemm_efficiency / device.num_sms
    slowness = peak / max(device.peak(name) for name in ("fp16", "bf16") if device.has_peak(name))
    half_area, half_k = device.gemm_tile_half_area * slowness, device.gemm_half_k * slowness
    bandwidth = device.memory_bandwidth * device.memory_efficiency
    best = math.inf
    for tile_m, tile_n in device.gemm_tiles:
        area = tile_m * tile_n
        blocks = batch * -(-m // tile_m) * -(-n // tile_n)
        step = max(2.0 * (area + half_area) / sm_rate, device.gemm_k_latency)
        for split in _SPLITS:
            waves = -(-blocks * split // device.num_sms)
            sums = (
                0.0
                if split == 1
                else device.kernel_overhead + split * batch * m * n * _PARTIAL_SUM_BYTES / bandwidth
            )
            best = min(best, waves * step * (-(-k // split) + half_k) + sums)
    return best


def _correction(
    device: Device, rows: tuple[GemmRow, ...], shape: tuple[int, int, int, int], peak: float
) -> float:
    """The geometric mean of measured / modelled seconds over the nearest measured shapes, weighted
    by 1 / distance squared."""
    nearest = sorted((_distance(row, shape), index) for index, row in enumerate(rows))[:_NEIGHBOURS]
    weights = [1.0 / max(distance, 1e-9) for distance, _ in nearest]
    logs = [
        weight * _log_ratio(device, rows[index], peak)
        for weight, (_, index) in zip(weights, nearest, strict=True)
    ]
    return math.exp(sum(logs) / sum(weights))


def _distance(row: GemmRow, shape: tuple[int, int, int, int]) -> float:
    """The squared distance of two shapes in log2; a batch multiplies the rows."""
    batch, m, n, k = shape
    pairs = ((row.batch * row.m, batch * m), (row.n, n), (row.k, k))
    return sum((math.log2(a) - math.log2(max(b, 1))) ** 2 for a, b in pairs)


@lru_cache(maxsize=4096)
def _log_ratio(device: Device, row: GemmRow, peak: float) -> float:
    """log(measured / modelled) of one row: its bytes are those of its three matrices."""
    elements = row.batch * (row.m * row.k + row.k * row.n + row.m * row.n)
    modelled = _modelled(
        device, (row.batch, row.m, row.n, row.k), elements * dtype_bytes(row.dtype), peak
    )
    return math.log(max(row.seconds - device.kernel_overhead, 0.05 * row.seconds) / modelled)
