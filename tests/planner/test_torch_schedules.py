"""Our named schedules are torch's, action by action, for the same ranks, microbatches, chunks.

torch builds a schedule from the stages of one rank, and needs little of them to order the actions:
a stub does. Known differences, which are torch's: the last rank of `Schedule1F1B.pipeline_order`
lists forwards 1 to n (it runs 0 to n-1), and with fewer microbatches than warm-up forwards the list
has forwards that there are not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import torch
from torch.distributed.pipelining import schedules as torchs

from planner.schedules.csv_text import read_csv, show_csv
from planner.schedules.registry import SCHEDULES, scheduled


@dataclass
class Stub:
    """What torch reads of a stage to order its actions."""

    stage_index: int
    num_stages: int
    group_size: int
    group_rank: int = 0
    submod: torch.nn.Module = field(default_factory=torch.nn.Identity)
    has_backward: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        return self.stage_index == 0

    @property
    def is_last(self) -> bool:
        return self.stage_index == self.num_stages - 1


def torch_orders(kind: Any, places: int, microbatches: int, chunks: int) -> list[list[str]]:
    """The actions of every rank; overlapped pairs one after the other, pauses left out."""
    # The classes order the actions of all ranks, whichever rank they are built for.
    stages = [Stub(i * places, places * chunks, places) for i in range(chunks)]
    if kind in (torchs.ScheduleGPipe, torchs.Schedule1F1B):
        schedule = kind(stages[0], microbatches, loss_fn=torch.nn.functional.mse_loss)
        # A private method: the only place where torch writes the order of these two down.
        order = schedule._get_pipeline_order()
    else:
        order = kind(stages, microbatches, loss_fn=torch.nn.functional.mse_loss).pipeline_order
    return [
        [
            str(part)
            for action in order[rank]
            if action is not None
            for part in action.sub_actions or (action,)
            if part.computation_type.value in "FBIW"
        ]
        for rank in range(places)
    ]


TORCHS = {
    "gpipe": torchs.ScheduleGPipe,
    "1f1b": torchs.Schedule1F1B,
    "interleaved": torchs.ScheduleInterleaved1F1B,
    "interleaved-zb": torchs.ScheduleInterleavedZeroBubble,
    "zbh1": torchs.ScheduleInterleavedZeroBubble,
    "zbv": torchs.ScheduleZBVZeroBubble,
    "dualpipev": torchs.ScheduleDualPipeV,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_orders_are_torchs(name: str) -> None:
    kind, compared = SCHEDULES[name], 0
    for p, m, v in product(range(1, 6), range(1, 14), (1, 2, 3)):
        if v != (kind.chunks or v) or (kind.chunks is None and v == 1) or kind.misfit(p, m):
            continue
        if name == "1f1b" and m < p:
            continue  # torch's list has forwards beyond the last
        if name == "zbh1" and SCHEDULES["interleaved-zb"].misfit(p, m):
            continue  # torch wants rounds for one stage a rank too
        ours = [list(map(str, order)) for order in scheduled(name, p, m, v).orders]
        theirs = torch_orders(TORCHS[name], p, m, v)
        if name == "1f1b":  # the last rank's forwards are one too high
            theirs[-1] = [f"{p - 1}F{int(a[2:]) - 1}" if a[1] == "F" else a for a in theirs[-1]]
        assert ours == theirs, (p, m, v)
        compared += 1
    assert compared >= 20


@pytest.mark.parametrize("name", ["interleaved", "interleaved-zb", "dualpipev"])
def test_misfits_are_torchs(name: str) -> None:
    for p, m in product(range(1, 6), range(1, 14)):
        try:
            torch_orders(TORCHS[name], p, m, 2)
        except ValueError:
            assert SCHEDULES[name].misfit(p, m)
        else:
            assert not SCHEDULES[name].misfit(p, m)


def test_torch_reads_our_csv_and_we_read_torchs(tmp_path: Any) -> None:
    file = tmp_path / "zbv.csv"
    schedule = scheduled("zbv", 4, 8)
    file.write_text(show_csv(schedule))
    stages = [Stub(0, 8, 4), Stub(7, 8, 4)]
    theirs = torchs.ScheduleZBVZeroBubble(stages, 8, loss_fn=torch.nn.functional.mse_loss)
    # Private methods: torch has no public way to read or write a schedule.
    theirs._load_csv(str(file))
    assert [list(map(str, theirs.pipeline_order[r])) for r in range(4)] == [
        list(map(str, order)) for order in schedule.orders
    ]
    assert theirs.stage_index_to_group_rank == dict(enumerate(schedule.places))
    other = torchs.ScheduleInterleaved1F1B(
        [Stub(0, 8, 4), Stub(4, 8, 4)],
        8,
        loss_fn=torch.nn.functional.mse_loss,
    )
    other._dump_csv(str(file), format="compute_only")
    assert read_csv(file.read_text(), "interleaved") == scheduled("interleaved", 4, 8, 2)
