"""Device seconds of one kernel: overhead + max(flops / achieved flops, bytes / achieved bandwidth),
by kind of kernel.

    kernel overhead + max(F / (P e), B / (BW e_m))

Source: Williams et al., "Roofline", CACM 2009; MODELLING 5.2. Matrix products follow `gemm`; an
LSTM is a chain of steps.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

from cost_models.device import KINDS, MATRIX_KINDS, VECTOR_KINDS, Device, OpRow
from cost_models.errors import BadValue, unknown_name
from cost_models.gemm import gemm_seconds

__all__ = ["KINDS", "host_time", "matrix_peak", "op_time"]

#: Number format of a matrix kernel by dtype, in order of preference. fp32 products stay in fp32 and
#: cuDNN kernels may use tf32: torch's defaults `backends.cuda.matmul.allow_tf32 = False`,
#: `backends.cudnn.allow_tf32 = True` ("CUDA semantics").
_FORMATS = {
    "float64": ("fp64",),
    "float32": ("fp32",),
    "bfloat16": ("bf16",),
    "float16": ("fp16",),
    "complex64": ("fp32",),
    "complex128": ("fp64",),
}
#: Real products per complex product: a complex multiply-add takes 8 real operations, a real one 2.
#: Source: Blackford and Dongarra, LAPACK Working Note 41, Appendix C: a complex multiplication
#: counts 6, an addition 2.
_REAL_PRODUCTS = {"complex64": 4.0, "complex128": 4.0}
_CUDNN_FP32 = ("tf32", "fp32")
#: Number format of element-wise arithmetic: everything but fp64 is computed in fp32 registers
#: (ATen's `opmath_t`).
_VECTOR_FORMATS = {"float64": "fp64"}
_VECTOR_DTYPES = (
    "float64", "float32", "bfloat16", "float16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "complex64", "complex128",
)  # fmt: skip


def matrix_peak(device: Device, kind: str, dtype: str) -> float:
    """Datasheet flops/s of `device` for matrix kernels of `kind` in `dtype`, flops counted as if
    all numbers were real.

    Raises as `op_time` does.
    """
    if dtype not in _FORMATS:
        raise unknown_name(f"dtype of a {kind}", dtype, tuple(_FORMATS))
    formats = _CUDNN_FP32 if dtype == "float32" and kind in ("conv", "lstm") else _FORMATS[dtype]
    chosen = next((name for name in formats if device.has_peak(name)), formats[-1])
    return device.peak(chosen) / _REAL_PRODUCTS.get(dtype, 1.0)


def _memory_time(device: Device, nbytes: float) -> float:
    """Seconds to move `nbytes`: from the measured table if there is one (log-log, never falling),
    else at one bandwidth."""
    if not device.elementwise_table:
        return nbytes / (device.memory_bandwidth * device.memory_efficiency)
    return _table_time(device, nbytes)


def _table_time(device: Device, nbytes: float) -> float:
    """Seconds interpolated over the table's (bytes, seconds); beyond its ends at the bandwidth
    of the end."""
    points = _points(device)
    if nbytes <= points[0][0]:
        return nbytes * points[0][1] / points[0][0]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if nbytes <= x1:
            share = math.log(nbytes / x0) / math.log(x1 / x0)
            return float(y0 * (y1 / y0) ** share)
    return nbytes * points[-1][1] / points[-1][0]


@lru_cache(maxsize=64)
def _points(device: Device) -> tuple[tuple[float, float], ...]:
    """(bytes, seconds) of the table, with seconds made never to fall with bytes."""
    points: list[tuple[float, float]] = []
    for row in device.elementwise_table:
        seconds = row.nbytes / row.bandwidth
        points.append((row.nbytes, max(seconds, points[-1][1]) if points else seconds))
    return tuple(points)


def _check(kind: str, flops: float, nbytes: float, steps: int) -> None:
    if kind not in KINDS:
        raise unknown_name("kind of op", kind, KINDS)
    if not (flops >= 0 and nbytes >= 0 and steps >= 1):
        raise BadValue(
            f"a {kind} needs flops >= 0, bytes >= 0 and steps >= 1, got {flops}, {nbytes} and {steps}"
        )


def op_time(
    device: Device,
    *,
    kind: str,
    flops: float,
    nbytes: float,
    dtype: str,
    gemm: tuple[int, int, int, int] | None = None,
    steps: int = 1,
    op: str = "",
) -> float:
    """Device seconds of one kernel of `kind` that does `flops` and reads and writes `nbytes` in
    all; 0 for a `view`.

    `gemm` is (batch, m, n, k) of the product; for an `lstm`, of the product of one of its `steps`
    sequential time steps. A `gemm` without it is costed as a square product of the same flops.
    Raises `UnknownName` for a kind or dtype that is not known, and `BadHardware` if the device has
    no peak in that dtype. If the device has measured calls of `op` in `dtype`, they are
    interpolated by bytes (vector kinds), or the roofline is corrected by the ratio of measured to
    modelled seconds at the nearest of them (products, convolutions, look-ups).
    """
    _check(kind, flops, nbytes, steps)
    if kind == "view":
        return 0.0
    seconds = _modelled(device, kind, flops, nbytes, dtype, gemm, steps)
    if not (op and device.op_table):
        return seconds
    if kind in _BY_BYTES:
        points = _curve(device, op, kind, dtype)
        return _interpolated(points, nbytes) if points else seconds
    measured = _ratios(device, op, dtype)
    return seconds * _correction(measured, _features(flops, nbytes, gemm)) if measured else seconds


#: Kinds whose seconds are a function of their bytes alone, once the op is known.
_BY_BYTES = tuple(kind for kind in VECTOR_KINDS if kind != "embedding")


@lru_cache(maxsize=4096)
def _curve(device: Device, op: str, kind: str, dtype: str) -> tuple[tuple[float, float], ...]:
    """(bytes, seconds) measured for `op` in `dtype`, else in float32, else for its kind. A fused
    kernel is as fast as elementwise ones if no fused kernel was measured."""
    rows = _rows(device)
    kinds = (kind, "elementwise") if kind == "fused" else (kind,)
    keys = ((op, dtype), (op, "float32"), *((one, "float32") for one in kinds))
    found: list[OpRow] = next((rows[key] for key in keys if key in rows), [])
    seconds: dict[float, list[float]] = {}
    for row in found:
        seconds.setdefault(row.nbytes, []).append(row.seconds)
    points: list[tuple[float, float]] = []
    for nbytes, times in sorted(seconds.items()):
        mean = math.exp(sum(map(math.log, times)) / len(times))
        points.append((nbytes, max(mean, points[-1][1]) if points else mean))
    return tuple(points)


def _interpolated(points: tuple[tuple[float, float], ...], nbytes: float) -> float:
    """Seconds at `nbytes`: log-log between the points; those of the first point below it;
    proportional to the bytes above the last."""
    if nbytes <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if nbytes <= x1:
            return float(y0 * (y1 / y0) ** (math.log(nbytes / x0) / math.log(x1 / x0)))
    return points[-1][1] * nbytes / points[-1][0]


def _modelled(
    device: Device,
    kind: str,
    flops: float,
    nbytes: float,
    dtype: str,
    gemm: tuple[int, int, int, int] | None,
    steps: int,
) -> float:
    if kind == "gemm":
        shape = gemm if gemm is not None else _square(flops)
        return device.kernel_overhead + gemm_seconds(
            device, shape, nbytes, dtype, matrix_peak(device, kind, dtype)
        )
    if kind == "lstm":
        return _lstm_time(device, flops, nbytes, dtype, gemm, steps)
    if kind in MATRIX_KINDS:
        return device.kernel_overhead + _matrix_time(device, kind, flops, nbytes, dtype)
    return device.kernel_overhead + _vector_time(device, kind, flops, nbytes, dtype)


#: Number of measured calls in a correction, weighted by 1 / distance squared.
_NEIGHBOURS = 3

_Features = tuple[float, ...]


def _features(flops: float, nbytes: float, gemm: tuple[int, int, int, int] | None) -> _Features:
    """The coordinates in which calls of one op are compared, in log2: flops, bytes, and the shape
    of its product if it is one."""
    batch, m, n, k = gemm or (1, 1, 1, 1)
    return tuple(math.log2(max(x, 1.0)) for x in (flops, nbytes, batch * m, n, k))


@lru_cache(maxsize=4096)
def _ratios(device: Device, op: str, dtype: str) -> tuple[tuple[_Features, float], ...]:
    """(features, log of measured / modelled seconds) of the measured calls of `op`."""
    return tuple(
        (_features(r.flops, r.nbytes, r.gemm), _log_ratio(device, r))
        for r in _rows(device).get((op, dtype), ())
    )


@lru_cache(maxsize=64)
def _rows(device: Device) -> dict[tuple[str, str], list[OpRow]]:
    out: dict[tuple[str, str], list[OpRow]] = {}
    for row in device.op_table:
        out.setdefault((row.op, row.dtype), []).append(row)
    return out


def _log_ratio(device: Device, row: OpRow) -> float:
    return math.log(
        row.seconds
        / _modelled(device, row.kind, row.flops, row.nbytes, row.dtype, row.gemm, row.steps)
    )


def _correction(measured: tuple[tuple[_Features, float], ...], wanted: _Features) -> float:
    """The geometric mean of the nearest ratios, weighted by 1 / distance squared."""
    distances = sorted(
        (sum((a - b) ** 2 for a, b in zip(at, wanted, strict=True)), ratio)
        for at, ratio in measured
    )
    nearest = [(1.0 / max(distance, 1e-9), ratio) for distance, ratio in distances[:_NEIGHBOURS]]
    return math.exp(
        sum(weight * ratio for weight, ratio in nearest) / sum(weight for weight, _ in nearest)
    )


def _square(flops: float) -> tuple[int, int, int, int]:
    side = max(1, math.ceil((flops / 2) ** (1 / 3)))
    return (1, side, side, side)


def _matrix_time(device: Device, kind: str, flops: float, nbytes: float, dtype: str) -> float:
    """max(F / (P e_kind), B / BW): fused convolution and attention kernels, whose tiles we do
    not model."""
    share = device.efficiency_of(kind) or device.gemm_efficiency
    return max(flops / (matrix_peak(device, kind, dtype) * share), _memory_time(device, nbytes))


def _vector_time(device: Device, kind: str, flops: float, nbytes: float, dtype: str) -> float:
    """max(B / (BW e_kind), F / P) with P of the ordinary units; `e_kind` is 1 if the device lists
    none."""
    if dtype not in _VECTOR_DTYPES:
        raise unknown_name("dtype", dtype, _VECTOR_DTYPES)
    share = device.efficiency_of(kind) or 1.0
    return max(
        _memory_time(device, nbytes) / share,
        flops / device.peak(_VECTOR_FORMATS.get(dtype, "fp32")),
    )


def _lstm_time(
    device: Device,
    flops: float,
    nbytes: float,
    dtype: str,
    gemm: tuple[int, int, int, int] | None,
    steps: int,
) -> float:
    """overhead + steps * (step overhead + recurrent product of one step) + the other flops at the
    kind's rate.

    The critical path of a recurrent layer is its time steps, one after the other; the inputs take
    one large product for all steps.
    """
    peak, share = (
        matrix_peak(device, "lstm", dtype),
        device.efficiency_of("lstm") or device.gemm_efficiency,
    )
    recurrent = gemm_seconds(device, gemm, 0.0, dtype, peak) if gemm is not None else 0.0
    done = 2.0 * math.prod(gemm) * steps if gemm is not None else 0.0
    chain = steps * (device.lstm_step_overhead + recurrent)
    return device.kernel_overhead + max(
        chain + max(flops - done, 0.0) / (peak * share), _memory_time(device, nbytes)
    )


def host_time(device: Device, kind: str) -> float:
    """Seconds that the host takes to dispatch an op of `kind`; 0 for a `view`, which the executor
    folds into its reader."""
    if kind not in KINDS:
        raise unknown_name("kind of op", kind, KINDS)
    return 0.0 if kind == "view" else device.launch_overhead
