"""The work of every process of a calibration: it times calls alone, then while others compute too,
then collectives together.

Rank 0 alone measures every call while the others wait in a barrier; then 2, 4, ... ranks at once
measure the `shared` calls. A figure is the median of single calls on evicted caches. On a CPU, a
call is timed by its thread's clock, which includes the cost of shared caches and memory, but not
the time for which another process had the core. Collectives wait, so they are timed by wall clock.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from cost_models.device import GemmRow, OpRow
from runtime.calibrate.case import row_of
from runtime.calibrate.cases import cases
from runtime.calibrate.measured import Measured, Settings, counts
from runtime.calibrate.overhead import overheads
from runtime.calibrate.products import DEVICE_GEMM_SHAPES, GEMM_SHAPES, gemm_case
from runtime.calibrate.timed_collectives import time_collectives
from runtime.calibrate.timer import Timer
from runtime.launcher import Emit
from runtime.optimizers import make_optimizer
from runtime.worker import Place, join

__all__ = ["measure"]

_DTYPES = ("float32", "float64", "bfloat16")


@torch.no_grad()
def measure(settings: Settings, emit: Emit) -> Measured | None:
    """The measurements on rank 0, None on the others. Emits `{"what", "done"}`, with done from 0 to
    1."""
    with join(settings.num_ranks, settings.device) as place:
        emit = emit if place.rank == 0 else _silent
        torch.manual_seed(place.rank)
        timer = Timer(settings, place)
        found = _alone(timer, emit) if place.rank == 0 else None
        _meet(place)
        shared = _together(timer, emit)
        collectives = time_collectives(settings, place, emit)
        if found is None:
            return None
        ops, gemms, overhead = found
        return Measured(
            ops=ops,
            gemms=gemms,
            shared=shared,
            collectives=collectives,
            op_overhead=overhead[0],
            step_overhead=overhead[1],
        )


def _silent(event: dict[str, Any]) -> None:
    """Drops events: only one rank reports progress."""


def _meet(place: Place) -> None:
    if place.num_ranks > 1:
        dist.barrier()


def _alone(
    timer: Timer, emit: Emit
) -> tuple[tuple[OpRow, ...], tuple[GemmRow, ...], tuple[float, float]]:
    """Measures every call, on this rank alone."""
    settings, device = timer.settings, timer.place.device
    overhead = overheads(device, lambda: timer.evict(small=True))
    found = cases(device, quick=settings.quick)
    ops = []
    for index, case in enumerate(found):
        emit({"what": f"measuring {case.op}", "done": 0.3 * index / len(found)})
        arguments = case.make()
        ops.append(row_of(case, arguments, timer.seconds(case.call(), arguments)))
    optimizer, step_overhead = _optimizer_rows(timer)
    gemms = []
    for number, dtype in enumerate(_DTYPES):
        most = GEMM_SHAPES if dtype == "float32" else GEMM_SHAPES[1::3]
        more = DEVICE_GEMM_SHAPES if device.type == "cuda" else ()
        shapes = GEMM_SHAPES[:3] if settings.quick else (*most, *more)
        for index, shape in enumerate(shapes):
            emit(
                {
                    "what": f"measuring products in {dtype}",
                    "done": 0.3 + 0.2 * (number + index / len(shapes)) / len(_DTYPES),
                }
            )
            gemms.append(_gemm_row(timer, shape, dtype))
    return (*ops, *optimizer), tuple(gemms), (overhead[0], overhead[1] + step_overhead)


def _gemm_row(timer: Timer, shape: tuple[int, int, int], dtype: str) -> GemmRow:
    case = gemm_case(shape, getattr(torch, dtype), timer.place.device)
    m, n, k = shape
    return GemmRow(
        batch=1, m=m, n=n, k=k, dtype=dtype, seconds=timer.seconds(case.call(), case.make())
    )


_OPTIMIZER_SIZES = (1 << 6, 1 << 12, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
_OPTIMIZED_TENSORS = 8


def _optimizer_rows(timer: Timer) -> tuple[list[OpRow], float]:
    """Rows for Adam on parameters of several sizes, per parameter of a step on 8, and the fixed
    seconds of a step: those of 1 tensor of the smallest size, less its row. A parameter is read and
    written, its gradient read, two moments read and written."""
    sizes = _OPTIMIZER_SIZES[:2] if timer.settings.quick else _OPTIMIZER_SIZES
    alone = _optimizer_seconds(timer, sizes[0], 1)
    shares = [
        (_optimizer_seconds(timer, numel, 1 + _OPTIMIZED_TENSORS) - alone) / _OPTIMIZED_TENSORS
        for numel in sizes
    ]
    rows = [
        OpRow(
            op="optimizer.adam",
            kind="optimizer",
            dtype="float32",
            flops=1.0,
            nbytes=7.0 * 4 * numel,
            gemm=(1, 1, 1, 1),
            steps=1,
            seconds=max(share, 1e-7),
        )
        for numel, share in zip(sizes, shares, strict=True)
    ]
    return rows, max(alone - shares[0], 0.0)


def _optimizer_seconds(timer: Timer, numel: int, count: int) -> float:
    """Seconds of a step of Adam on `count` parameters: one of the smallest size, the others of
    `numel` elements."""
    sizes = [_OPTIMIZER_SIZES[0], *[numel] * (count - 1)]
    tensors = [torch.randn(n, device=timer.place.device) for n in sizes]
    for tensor in tensors:
        tensor.grad = torch.randn_like(tensor)
    optimizer = make_optimizer("adam", tensors, 1e-3)
    optimizer.step()
    return timer.seconds(lambda: optimizer.step(), (), small=numel <= _OPTIMIZER_SIZES[0])


def _together(timer: Timer, emit: Emit) -> tuple[tuple[int, str, float], ...]:
    """The shared calls, by 1, 2, 4, ... ranks at once, up to one per core: the mean over those
    ranks, relative to rank 0 alone just before. More ranks take turns, which needs no
    measurement."""
    place, device = timer.place, timer.place.device
    found = [case for case in cases(device, quick=timer.settings.quick) if case.shared]
    found.append(gemm_case((256, 256, 256), torch.float32, device))
    if not timer.settings.quick:
        found.append(gemm_case((1024, 768, 256), torch.float32, device))
        found.append(gemm_case((256, 1024, 4096), torch.float32, device))
    out = []
    for index, case in enumerate(found):
        emit({"what": "measuring ranks together", "done": 0.5 + 0.2 * index / len(found)})
        arguments, alone = case.make(), 0.0
        for count in counts(min(place.num_ranks, timer.settings.num_cores)):
            _meet(place)
            seconds = timer.seconds(case.call(), arguments, more=2) if place.rank < count else 0.0
            total = torch.tensor(seconds, dtype=torch.float64, device=device)
            if place.num_ranks > 1:
                dist.all_reduce(total)
            alone = float(total) if count == 1 else alone
            if count > 1:
                out.append((count, row_of(case, arguments, 1.0).kind, float(total) / count / alone))
    return tuple(out)
