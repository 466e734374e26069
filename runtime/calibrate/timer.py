"""Seconds of a call on a rank: the median of single calls on evicted caches on a CPU, the mean of
calls in a row, by device events, on CUDA."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from planner.torch_private.device import hold_device
from runtime.calibrate.measured import Settings
from runtime.worker import Place

__all__ = ["Timer", "device_seconds"]


#: More bytes than a core's own caches hold, fewer than the shared one: a call finds its operands
#: there, as in a step. A step runs each kind of small call only now and then, so its code has left
#: even the shared cache: before small calls, more bytes are evicted.
_EVICTED_BYTES, _EVICTED_FOR_SMALL = 16 << 20, 64 << 20
_SMALL_SECONDS = 5e-5
#: On CUDA: the most calls in a row whose mean is taken, and the seconds that they may take. The
#: device is held back while the host queues them (for cycles at 2 GHz, the highest clock of any),
#: so that launches are not part of their time.
_CALLS_IN_A_ROW, _ROW_SECONDS = 20, 2e-3
_LONGEST_HOLD, _CLOCK = 0.05, 2e9


class Timer:
    """Measures the seconds per call, by this place's clock."""

    def __init__(self, settings: Settings, place: Place) -> None:
        self.settings, self.place = settings, place
        self._evicting = torch.zeros(_EVICTED_FOR_SMALL // 4, device=place.device)

    def evict(self, *, small: bool = False) -> None:
        """Fills the core's own caches with other data, as the other ops of a step do; before a
        `small` call, the shared cache too."""
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
    one = device_seconds(call, arguments, 1)
    calls = max(1, min(_CALLS_IN_A_ROW, int(_ROW_SECONDS / max(one, 1e-9))))
    return statistics.median(device_seconds(call, arguments, calls) for _ in range(windows))


def device_seconds(
    call: Callable[..., Any], arguments: tuple[Any, ...], calls: int = _CALLS_IN_A_ROW
) -> float:
    """The mean of a few calls in a row, by device events, without the host's launch time: the calls
    are issued once to measure that, and again while the device is held back for longer."""

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
