"""Memory that ranks share, by threads of this process that each have a place in it;
`test_distributed.py` has the ranks."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from planner.kernels import futex, shared
from planner.kernels.mailbox import Mailbox, mailbox_bytes
from planner.kernels.shared import SharedMemory

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="shared memory needs Linux on x86-64",
)


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


def on_threads(num: int, work: Callable[[int], None]) -> None:
    """`work(place)` on so many threads at once; raises what any of them raised."""
    with ThreadPoolExecutor(num) as pool:
        for done in [pool.submit(work, place) for place in range(num)]:
            done.result(60)


def value(place: int, round_: int, numel: int) -> Tensor:
    return torch.full((numel,), float(10**place * (round_ + 1)), dtype=torch.float64)


@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize(
    "numel", [1, 1000, 40_001]
)  # the last is reduced in parts, of unlike sizes, by more than two ranks
def test_rows_are_reduced_round_after_round(
    file: int, num_ranks: int, numel: int, reduce: str
) -> None:
    """A rank that is ahead writes nothing under one that still reads: every round has sums of
    its own."""

    def work(place: int) -> None:
        region = SharedMemory(os.dup(file), num_ranks, place).region("a", numel, torch.float64)
        for round_ in range(30):
            region.begin().copy_(value(place, round_, numel))
            region.publish()
            out = torch.empty(numel, dtype=torch.float64)
            region.reduce(out, reduce)
            rows = torch.stack([value(other, round_, numel) for other in range(num_ranks)])
            assert torch.equal(out, rows.sum(0) if reduce == "sum" else rows.amax(0)), (
                place,
                round_,
            )

    on_threads(num_ranks, work)


def test_regions_lie_apart_and_are_given_out_again(file: int) -> None:
    def work(place: int) -> None:
        memory = SharedMemory(os.dup(file), 2, place)
        first, second = memory.region("a", 7, torch.float32), memory.region("b", 5, torch.int64)
        assert memory.region("a", 7, torch.float32) is first
        first.begin().fill_(place + 1)
        second.begin().fill_(place + 10)
        first.publish()
        second.publish()
        assert [row.tolist() for row in second.rows()] == [[10] * 5, [11] * 5]
        assert [row.tolist() for row in first.rows()] == [[1.0] * 7, [2.0] * 7]
        first.done()
        second.done()

    on_threads(2, work)


def test_a_rank_gets_the_blocks_that_are_meant_for_it(file: int) -> None:
    def work(place: int) -> None:
        region = SharedMemory(os.dup(file), 2, place).region("a", 6, torch.float64)
        region.begin().copy_(torch.arange(6.0) + 10 * place)
        region.publish()
        assert [block.tolist() for block in region.blocks()] == [
            [3 * place + i + 10 * sender for i in range(3)] for sender in range(2)
        ]
        assert region.reduce_block("sum").tolist() == [2 * (3 * place + i) + 10 for i in range(3)]

    on_threads(2, work)


def test_the_file_of_another_process_is_taken_only_if_it_is_the_one_that_was_told(
    file: int,
) -> None:
    """A number of a process means another process in another container."""
    os.pwrite(file, b"0123456789abcdef", 0)
    opened = shared._opened(os.getpid(), file, b"0123456789abcdef")
    assert os.pread(opened, 4, 0) == b"0123"
    os.close(opened)
    assert shared._opened(os.getpid(), file, b"another that is told") == -1
    assert shared._opened(2**30, file, b"0123456789abcdef") == -1


def test_a_rank_that_says_nothing_is_named(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(futex, "_TIMEOUT_S", 0.0)
    region = SharedMemory(os.dup(file), 2, 0).region("a", 1, torch.float64)
    region.begin()
    region.publish()
    with pytest.raises(RuntimeError, match="rank 1 of the group has sent nothing for 0 s"):
        region.rows()


def test_messages_lie_in_a_mailbox_until_they_are_read(file: int) -> None:
    """The writer is never more than the slots ahead; what is read is what was written."""
    slots, messages = 2, 50
    log: list[tuple[str, int]] = []

    def work(place: int) -> None:
        memory = SharedMemory(os.dup(file), 2, place)
        offset = memory.reserve(mailbox_bytes(3, 8, slots))
        box = Mailbox(memory, offset, slots, 3, torch.float64)
        for number in range(messages):
            if place == 0:
                box.empty(number).fill_(number)
                log.append(("write", number))
                box.written(number)
            else:
                assert box.full(number).tolist() == [number] * 3
                log.append(("read", number))
                box.read(number)

    on_threads(2, work)
    for number in range(messages):
        assert log.index(("write", number)) < log.index(("read", number))
        if number >= slots:
            assert log.index(("read", number - slots)) < log.index(("write", number))
