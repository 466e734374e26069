"""What every process of a calibration does: time calls alone, then while others compute too, then
collectives together.

Rank 0 alone measures every call while the others wait in a barrier; the `shared` calls are then
measured by 2, by 4, ... ranks at once. A figure is the median of single calls on evicted caches. On
a CPU the clock of a call is that of its thread: it counts what shared caches and memory cost, and
not the time that another process had the core. Collectives, which wait, take wall time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from cost_models.device import GemmRow, OpRow
from cost_models.machine import CollectiveRow
from planner.program.program import Communicate
from planner.torch_private.device import hold_device
from runtime.calibrate.cases import DEVICE_GEMM_SHAPES, GEMM_SHAPES, cases, gemm_case, row_of
from runtime.calibrate.overhead import overheads
from runtime.collectives import compile_collective
from runtime.launcher import Emit
from runtime.optimizers import make_optimizer
from runtime.worker import Place, join

__all__ = ["Measured", "Settings", "measure"]

#: More than a core's own caches, less than the one that cores share: a call finds its operands
#: there, as in a step. A step runs each kind of small call once in a while, so that its code has
#: left even the shared cache: those are measured after more.
_EVICTED_BYTES, _EVICTED_FOR_SMALL = 16 << 20, 64 << 20
_SMALL_SECONDS = 5e-5
#: On CUDA: calls in a row of which the mean is taken, or as many as take so long; and how long the
#: device is held back at most while the host queues them, at the highest clock of any (2 GHz), so
#: that their launches are not part of their time.
_CALLS_IN_A_ROW, _ROW_SECONDS = 20, 2e-3
_LONGEST_HOLD, _CLOCK = 0.05, 2e9
_DTYPES = ("float32", "float64", "bfloat16")
_KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How many ranks, on what, with how many cores for them, and whether only the smallest
    shapes."""

    num_ranks: int
    device: str
    num_cores: int
    quick: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What rank 0 brings home. `shared` are (ranks at once, kind, core seconds together / core
    seconds alone), one a call."""

    ops: tuple[OpRow, ...]
    gemms: tuple[GemmRow, ...]
    shared: tuple[tuple[int, str, float], ...]
    collectives: tuple[CollectiveRow, ...]
    op_overhead: float
    step_overhead: float


class _Timer:
    """Seconds a call, on this place's clock."""

    def __init__(self, settings: Settings, place: Place) -> None:
        self.settings, self.place = settings, place
        self._evicting = torch.zeros(_EVICTED_FOR_SMALL // 4, device=place.device)

    def evict(self, *, small: bool = False) -> None:
        """Fills the core's own caches with something else, as the other ops of a step do; before
        a `small` call, the shared too."""
        self._evicting[: None if small else _EVICTED_BYTES // 4].add_(1.0)

    def seconds(
        self,
        call: Callable[..., Any],
        arguments: tuple[Any, ...],
        *,
        more: int = 1,
        small: bool = False,
    ) -> float:
        """The median of single calls, each on evicted caches; `more` times as many calls as
        usual."""
        call(*arguments)
        if self.place.device.type == "cuda":
            return _on_cuda(call, arguments, (3 if self.settings.quick else 7) * more)
        once = self._core_seconds
        first = once(call, arguments)
        if small or first < _SMALL_SECONDS:
            return statistics.median(
                self._core_seconds(call, arguments, small=True)
                for _ in range(3 if self.settings.quick else 9)
            )
        count = 3 if self.settings.quick else 7 if first > 5e-3 else 15
        return statistics.median(once(call, arguments) for _ in range(count * more))

    def _core_seconds(
        self, call: Callable[..., Any], arguments: tuple[Any, ...], *, small: bool = False
    ) -> float:
        self.evict(small=small)
        start = time.thread_time()
        call(*arguments)
        return time.thread_time() - start


def _on_cuda(call: Callable[..., Any], arguments: tuple[Any, ...], windows: int) -> float:
    """The median over windows of the device seconds of a call."""
    one = _device_seconds(call, arguments, 1)
    calls = max(1, min(_CALLS_IN_A_ROW, int(_ROW_SECONDS / max(one, 1e-9))))
    return statistics.median(_device_seconds(call, arguments, calls) for _ in range(windows))


def _device_seconds(
    call: Callable[..., Any], arguments: tuple[Any, ...], calls: int = _CALLS_IN_A_ROW
) -> float:
    """The mean of a few calls in a row, by device events, without what the host takes to launch
    them: the calls are issued once to know how long that is, and again while the device is held
    back for longer."""

    def issue() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            call(*arguments)
        return time.perf_counter() - began

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    host = issue()
    torch.cuda.synchronize()
    hold_device(int(min(2 * host, _LONGEST_HOLD) * _CLOCK))
    start.record()
    issue()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / calls


@torch.no_grad()
def measure(settings: Settings, emit: Emit) -> Measured | None:
    """The measurements on rank 0, None on the others. Emits `{"what", "done"}`, done from 0 to
    1."""
    with join(settings.num_ranks, settings.device) as place:
        emit = emit if place.rank == 0 else _silent
        torch.manual_seed(place.rank)
        timer = _Timer(settings, place)
        found = _alone(timer, emit) if place.rank == 0 else None
        _meet(place)
        shared = _together(timer, emit)
        collectives = _collectives(settings, place, emit)
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
    """One rank tells how far all are."""


def _meet(place: Place) -> None:
    if place.num_ranks > 1:
        dist.barrier()


# ------------------------------------------------------------------------------------------ compute


def _alone(
    timer: _Timer, emit: Emit
) -> tuple[tuple[OpRow, ...], tuple[GemmRow, ...], tuple[float, float]]:
    """Every call, on this rank only."""
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


def _gemm_row(timer: _Timer, shape: tuple[int, int, int], dtype: str) -> GemmRow:
    case = gemm_case(shape, getattr(torch, dtype), timer.place.device)
    m, n, k = shape
    return GemmRow(
        batch=1, m=m, n=n, k=k, dtype=dtype, seconds=timer.seconds(case.call(), case.make())
    )


_OPTIMIZER_SIZES = (1 << 6, 1 << 12, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
_OPTIMIZED_TENSORS = 8


def _optimizer_rows(timer: _Timer) -> tuple[list[OpRow], float]:
    """Adam on parameters of several sizes, as the share of one of 8, and what a step costs
    besides: the least size's seconds on 1 tensor, less the share of one. A parameter is read and
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


def _optimizer_seconds(timer: _Timer, numel: int, count: int) -> float:
    """One step of Adam on `count` parameters: one of the least size, the others of `numel`."""
    sizes = [_OPTIMIZER_SIZES[0], *[numel] * (count - 1)]
    tensors = [torch.randn(n, device=timer.place.device) for n in sizes]
    for tensor in tensors:
        tensor.grad = torch.randn_like(tensor)
    optimizer = make_optimizer("adam", tensors, 1e-3)
    optimizer.step()
    return timer.seconds(lambda: optimizer.step(), (), small=numel <= _OPTIMIZER_SIZES[0])


def _together(timer: _Timer, emit: Emit) -> tuple[tuple[int, str, float], ...]:
    """The shared calls by 1, 2, 4, ... ranks at once, up to one a core; the mean over the ranks
    at work, against rank 0 alone just before. More ranks take turns: that needs no measurement."""
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
        for count in _counts(min(place.num_ranks, timer.settings.num_cores)):
            _meet(place)
            seconds = timer.seconds(case.call(), arguments, more=2) if place.rank < count else 0.0
            total = torch.tensor(seconds, dtype=torch.float64, device=device)
            if place.num_ranks > 1:
                dist.all_reduce(total)
            alone = float(total) if count == 1 else alone
            if count > 1:
                out.append((count, row_of(case, arguments, 1.0).kind, float(total) / count / alone))
    return tuple(out)


def _counts(num_ranks: int) -> list[int]:
    return [n for n in (1, 2, 4, 8) if n <= num_ranks]


# -------------------------------------------------------------------------------------- collectives

_COLLECTIVE_SIZES = (1 << 10, 1 << 14, 1 << 17, 1 << 19, 1 << 21, 1 << 23, 1 << 25)
#: Products between two collectives: about two milliseconds of a core, as between the collectives of
#: a step; where ranks share a core, about six, longer than the system lets one of them run before
#: it turns to the next.
_BURST, _LONG_BURST = 6, 18
_ROUNDS = 4


def _collectives(settings: Settings, place: Place, emit: Emit) -> tuple[CollectiveRow, ...]:
    """Every collective by size for groups of 2, 4, ... ranks; groups of 2 also all at once."""
    sizes = _COLLECTIVE_SIZES[:2] if settings.quick else _COLLECTIVE_SIZES
    rows: list[CollectiveRow] = []
    layouts = [
        (n, g) for n in _counts(place.num_ranks)[1:] for g in range(1, place.num_ranks // n + 1)
    ]
    for at, (size, num_groups) in enumerate(layouts):
        groups = _groups(place.rank, size, num_groups)
        dist.barrier()
        burst = _Burst(settings, place, size * num_groups)
        for index, kind in enumerate(_KINDS):
            done = (at + index / len(_KINDS)) / len(layouts)
            emit({"what": f"measuring {kind} of {size} ranks", "done": 0.7 + 0.3 * done})
            for nbytes in sizes:
                dist.barrier()
                if groups:
                    calls = [_collective(kind, nbytes, size, place, group) for group in groups]
                    seconds = burst.seconds(calls, 5 if nbytes <= 1 << 19 else 3)
                    rows.append(
                        CollectiveRow(
                            kind=kind,
                            group_size=size,
                            num_groups=num_groups,
                            nbytes=nbytes,
                            seconds=seconds,
                        )
                    )
    return tuple(rows)


def _groups(rank: int, size: int, num_groups: int) -> list[dist.ProcessGroup]:
    """This rank's group; of several groups at once also that across them, as a mesh has both:
    ranks of one axis alone would drift apart, and one group would compute while another waits."""
    neighbours = [list(range(i * size, (i + 1) * size)) for i in range(num_groups)]
    across = (
        [list(range(i, size * num_groups, num_groups)) for i in range(num_groups)]
        if num_groups > 1
        else []
    )
    made = [(ranks, dist.new_group(ranks)) for ranks in (*neighbours, *across)]
    return [group for ranks, group in made if rank in ranks]


class _Burst:
    """Compute between collectives. A rank that wakes up finds its core taken by another rank
    that computes, and its peers late: what that costs is part of a collective in a step, and no
    part of one that is called in a loop of its own."""

    def __init__(self, settings: Settings, place: Place, num_ranks: int) -> None:
        self.place = place
        self.matrix = torch.randn(256, 256, device=place.device)
        self.turns = max(1.0, num_ranks / settings.num_cores)
        self.products = _LONG_BURST if self.turns > 1 else _BURST

    def seconds(self, calls: Sequence[Callable[[], Any]], windows: int) -> float:
        """Wall seconds of a round of compute and a call, the calls in turn, less the core time
        of the compute times the ranks that share a core: the median over windows of a window's
        mean."""
        for call in calls:
            call()
        return statistics.median(self._window(calls) for _ in range(windows))

    def _window(self, calls: Sequence[Callable[[], Any]]) -> float:
        if self.place.device.type == "cuda":
            return _device_seconds(calls[0], ())
        computed, start = 0.0, time.perf_counter()
        for index in range(_ROUNDS):
            core = time.thread_time()
            for _ in range(self.products):
                torch.mm(self.matrix, self.matrix)
            computed += time.thread_time() - core
            calls[index % len(calls)]()
        return max(time.perf_counter() - start - self.turns * computed, 1e-5) / _ROUNDS


def _collective(
    kind: str, nbytes: int, size: int, place: Place, group: dist.ProcessGroup
) -> Callable[[], Any]:
    """The call as the executor makes it, packing and unpacking included."""
    numel = nbytes // 4
    part = numel // size if kind == "all_gather" else numel
    expanded = (size, part // size) if kind != "all_gather" else (1, part)
    result = (
        (part,)
        if kind in ("all_reduce", "all_to_all")
        else (numel,)
        if kind == "all_gather"
        else (part // size,)
    )
    collective = compile_collective(
        Communicate(
            id="calibration",
            kind=kind,
            axes=(0,),
            sources=(0,),
            results=(1,),
            expanded=(expanded,),
            shapes=(result,),
            dtypes=("float32",),
            gather=0 if kind != "reduce_scatter" else None,
            split=0,
            phase="forward",
        ),
        group,
        size,
        dist.get_rank(group),
        [True],
    )
    value = torch.randn(part, device=place.device)
    return lambda: collective(value)
