"""torch's allocator: a record of its allocations and frees."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch._C import _autograd as _profiler

# The public profiler records every op too, at several times a small op's cost.
from torch._C._profiler import (
    ProfilerActivity,
    ProfilerConfig,
    ProfilerState,
    RecordScope,
    _ExperimentalConfig,
)

__all__ = ["Allocations", "allocations"]


@dataclass(slots=True)
class Allocations:
    """The record of an allocator: `samples` are times (ns of the Unix epoch) and the bytes held
    from each on.

    On CPU, `before` is the value from which the samples start. Only differences mean anything,
    since the allocator does not count memory from before the record. On CUDA, samples are all bytes
    of the device.
    """

    before: int = 0
    samples: list[tuple[int, int]] = field(default_factory=list)


@contextmanager
def allocations(device: torch.device) -> Iterator[Allocations]:
    """Records the allocator of `device` within it; the record is filled at its end. What other
    threads free is counted too (gloo's threads let go of what they send), as long as it was
    allocated under a record.

    Private: the public profiler cannot be kept from recording ops, and has no switch for other
    threads.
    """
    # Else the profiler prints when it begins and ends.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    found = Allocations()
    activities, scopes = {ProfilerActivity.CPU}, {RecordScope.USER_SCOPE}  # no op has that scope
    config = ProfilerConfig(
        ProfilerState.KINETO, False, True, False, False, False, _ExperimentalConfig()
    )
    with _all_threads_counted():
        _profiler._prepare_profiler(config, activities)
        _profiler._enable_profiler(config, activities, scopes)  # type: ignore[call-arg]  # the stub knows no scopes
        try:
            yield found
        finally:
            result = _profiler._disable_profiler()
    first = True
    for event in sorted(result.experimental_event_tree(), key=lambda event: event.start_time_ns):
        extra: Any = event.extra_fields
        if (
            event.name == "[memory]"
            and extra.device.type == device.type
            and extra.device.index in (None, -1, device.index)
        ):
            if first:
                found.before, first = extra.total_allocated - extra.alloc_size, False
            found.samples.append((event.start_time_ns, extra.total_allocated))


@contextmanager
def _all_threads_counted() -> Iterator[None]:
    """A context in which the CPU allocator keeps its total over all threads, and prints no warning
    about blocks from before."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    counted = ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage")
    level = ctypes.c_int.in_dll(library, "FLAGS_caffe2_log_level")
    kept = counted.value, level.value
    counted.value, level.value = True, max(level.value, 2)
    try:
        yield
    finally:
        counted.value, level.value = kept
