"""A mailbox in memory that ranks of one machine share: what one rank sends to one other.

The n-th message lies in slot n % slots. Its writer waits until the message before it in the slot is
read, its reader until it is written; either waits for nothing else, and both may be far apart.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from planner.kernels.futex import LINE, looks_for, wait_until, wake
from planner.kernels.shared import SharedMemory, row_bytes, up_to_pages

__all__ = ["Mailbox", "mailbox_bytes"]


def mailbox_bytes(numel: int, itemsize: int, slots: int) -> int:
    """Bytes of a mailbox: a counter and a row for each slot, rounded up to whole pages."""
    return up_to_pages(slots * (LINE + row_bytes(numel, itemsize)))


class Mailbox:
    """The slots of one pair of ranks, for messages of `numel` elements. `offset` comes from
    `SharedMemory.reserve`. A slot's counter is twice the number of messages read from it, one more
    while another lies in it."""

    def __init__(
        self, memory: SharedMemory, offset: int, slots: int, numel: int, dtype: torch.dtype
    ) -> None:
        self.slots = slots
        nbytes = mailbox_bytes(numel, dtype.itemsize, slots)
        whole = torch.frombuffer(mmap.mmap(memory.fd, nbytes, offset=offset), dtype=torch.uint8)
        head, row = slots * LINE, row_bytes(numel, dtype.itemsize)
        self._counters = whole[:head].view(torch.int32).numpy()
        self._address = whole.data_ptr()
        self._rows = [
            whole[head + s * row : head + s * row + numel * dtype.itemsize].view(dtype)
            for s in range(slots)
        ]
        self._looks = looks_for(memory.num_ranks)

    def empty(self, number: int) -> Tensor:
        """The slot [numel] for a message, to be written; waits until it is free."""
        slot = number % self.slots
        self._wait(slot, number // self.slots * 2, "the rank that reads")
        return self._rows[slot]

    def written(self, number: int) -> None:
        """Signals that a message is written."""
        self._raise(number % self.slots)

    def full(self, number: int) -> Tensor:
        """A message [numel]; waits until it is written."""
        slot = number % self.slots
        self._wait(slot, number // self.slots * 2 + 1, "the rank that writes")
        return self._rows[slot]

    def read(self, number: int) -> None:
        """Signals that a message is read."""
        self._raise(number % self.slots)

    def _wait(self, slot: int, target: int, who: str) -> None:
        at = slot * LINE
        wait_until(self._counters, at // 4, self._address + at, target, self._looks, who)

    def _raise(self, slot: int) -> None:
        at = slot * LINE
        self._counters[at // 4] += 1
        wake(self._address + at)
