"""Collectives by kind, bytes and ranks, and messages between two ranks, with compute between them
as in a step."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cost_models.machine import CollectiveRow
from planner.kernels.mailbox import Mailbox, mailbox_bytes
from planner.kernels.shared import SharedMemory, shared_memory_of
from planner.program.program import Communicate
from runtime.calibrate.measured import Settings, counts
from runtime.calibrate.timer import device_seconds
from runtime.collectives import compile_collective
from runtime.launcher import Emit
from runtime.worker import Place

__all__ = ["time_collectives"]


#: What is measured in groups of every size, and what of two ranks.
_KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
_SEND = "send"
#: As few as a schedule has: one in use, and one more.
_SLOTS = 2
_COLLECTIVE_SIZES = (1 << 10, 1 << 14, 1 << 17, 1 << 19, 1 << 21, 1 << 23, 1 << 25)
#: Products between two collectives: about two milliseconds of a core, as between the collectives of
#: a step. If ranks share a core, about six, longer than the scheduler's time slice.
_BURST, _LONG_BURST = 6, 18
_ROUNDS = 4


def time_collectives(settings: Settings, place: Place, emit: Emit) -> tuple[CollectiveRow, ...]:
    """Measures every collective by size, in groups of 2, 4, ... ranks; groups of 2 also all at
    once, and these also messages from one to the other."""
    sizes = _COLLECTIVE_SIZES[:2] if settings.quick else _COLLECTIVE_SIZES
    rows: list[CollectiveRow] = []
    layouts = [
        (n, g) for n in counts(place.num_ranks)[1:] for g in range(1, place.num_ranks // n + 1)
    ]
    for at, (size, num_groups) in enumerate(layouts):
        groups = _groups(place.rank, size, num_groups)
        dist.barrier()
        burst = _Burst(settings, place, size * num_groups)
        kinds = (*_KINDS, _SEND) if size == 2 else _KINDS
        for index, kind in enumerate(kinds):
            done = (at + index / len(kinds)) / len(layouts)
            emit({"what": f"measuring {kind} of {size} ranks", "done": 0.7 + 0.3 * done})
            for nbytes in sizes:
                dist.barrier()
                if groups:
                    windows = 5 if nbytes <= 1 << 19 else 3
                    if kind == _SEND:
                        there_and_back = _there_and_back(nbytes, place, groups[0])
                        seconds = burst.seconds([there_and_back], windows) / 2
                    else:
                        calls = [_collective(kind, nbytes, size, place, group) for group in groups]
                        seconds = burst.seconds(calls, windows)
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
    """This rank's group and, if several run at once, the group across them, as in a mesh. With one
    axis alone the groups would drift apart, and one would compute while another waits."""
    neighbours = [list(range(i * size, (i + 1) * size)) for i in range(num_groups)]
    across = (
        [list(range(i, size * num_groups, num_groups)) for i in range(num_groups)]
        if num_groups > 1
        else []
    )
    made = [(ranks, dist.new_group(ranks)) for ranks in (*neighbours, *across)]
    return [group for ranks, group in made if rank in ranks]


class _Burst:
    """Compute between collectives. A rank that wakes up finds its core taken by another rank that
    computes, and its peers late. That cost is part of a collective in a step, but not of one that
    is called in a loop by itself."""

    def __init__(self, settings: Settings, place: Place, num_ranks: int) -> None:
        self.place = place
        self.matrix = torch.randn(256, 256, device=place.device)
        self.turns = max(1.0, num_ranks / settings.num_cores)
        self.products = _LONG_BURST if self.turns > 1 else _BURST

    def seconds(self, calls: Sequence[Callable[[], Any]], windows: int) -> float:
        """Wall seconds of a round of compute and a call (the calls take turns), less the core time
        of the compute times the number of ranks that share a core: the median of windows' means."""
        for call in calls:
            call()
        return statistics.median(self._window(calls) for _ in range(windows))

    def _window(self, calls: Sequence[Callable[[], Any]]) -> float:
        if self.place.device.type == "cuda":
            return device_seconds(calls[0], ())
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
    """The call as in the executor, packing and unpacking included."""
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


def _there_and_back(nbytes: int, place: Place, pair: dist.ProcessGroup) -> Callable[[], Any]:
    """A message to the other rank of a pair, and one back, as between stages of a pipeline. A
    message has left its rank long before the other has it, so only the way back shows how long both
    took."""
    value = torch.randn(nbytes // 4, device=place.device)
    mine = dist.get_rank(pair)
    memory = shared_memory_of(pair) if place.device.type == "cpu" else None
    if memory is not None:
        return _through_mailboxes(value, mine, memory)
    other = dist.get_global_rank(pair, 1 - mine)

    def call() -> None:
        for sender in (0, 1):
            if mine == sender:
                dist.send(value, other, group=pair)
            else:
                dist.recv(torch.empty_like(value), other, group=pair)

    return call


def _through_mailboxes(value: Tensor, mine: int, memory: SharedMemory) -> Callable[[], Any]:
    """There and back through two mailboxes in the memory that the ranks share."""
    nbytes = mailbox_bytes(value.numel(), value.itemsize, _SLOTS)
    boxes = [
        Mailbox(memory, memory.reserve(nbytes), _SLOTS, value.numel(), value.dtype)
        for _ in range(2)
    ]
    numbers = itertools.count()

    def call() -> None:
        number = next(numbers)
        for sender, box in enumerate(boxes):
            if mine == sender:
                box.empty(number).copy_(value)
                box.written(number)
            else:
                torch.empty_like(value).copy_(box.full(number))
                box.read(number)

    return call
