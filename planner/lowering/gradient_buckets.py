"""Merges gradients' reductions into flat buckets, each sent when it is full."""

from __future__ import annotations

from collections.abc import Hashable

from planner.lowering.late_reports import needed_in_training
from planner.lowering.merging import kind_key, merge
from planner.lowering.reduced_sums import summing, term_of
from planner.program.program import Communicate, Instruction, Update, reads, writes
from planner.strategy.costing import Costing

__all__ = ["bucketed"]


class _Buckets:
    """Open buckets, and the instructions that wait for one; all are written in an order that keeps
    writes before reads."""

    def __init__(self, costing: Costing, size: int) -> None:
        self.costing, self.size = costing, size
        self.out: list[Instruction] = []
        self.open: dict[Hashable, list[Communicate]] = {}
        # Bucket -> the next messages of the values that it sends.
        self.following: dict[Hashable, list[Communicate]] = {}
        # Value -> the open bucket that will write it, or its source.
        self.pending: dict[int, Hashable] = {}
        # Bucket -> the messages that are kept for the last one of its kind.
        self.riding: dict[Hashable, list[Communicate]] = {}
        # Bucket -> the sums over microbatches that add its results, and views for these.
        self.summing: dict[Hashable, list[Instruction]] = {}
        self.deferred: list[Instruction] = []
        self.late: set[int] = set()

    def add(self, part: Communicate) -> None:
        """Puts a message in its bucket, or sends it alone if it fills one; the second step of a
        chain waits for the bucket of the first."""
        if any(source in self.late for source in part.sources):
            self._flush_deferred()
        first = next(
            (self.pending[source] for source in part.sources if source in self.pending), None
        )
        # Sent alone: in one buffer with others, all of them would be copied.
        if first is None and part.nbytes >= self.size:
            self.out.append(part)
            return
        key = kind_key(part) if first is None else first
        for result in part.results:
            self.pending[result] = key
        if first is not None:
            self.following.setdefault(key, []).append(part)
            return
        self.open.setdefault(key, []).append(part)
        if sum(p.nbytes for p in self.open[key]) >= self.size:
            self.flush(key, last=False)

    def ride(self, part: Communicate) -> None:
        """Keeps a message for the last bucket of its kind."""
        self.riding.setdefault(kind_key(part), []).append(part)
        self.pending.update(dict.fromkeys(part.results, kind_key(part)))

    def sum_up(self, instruction: Instruction) -> None:
        """Writes a sum over microbatches, or a view for one, or keeps it until its bucket is
        sent."""
        key = self.pending.get(term_of(instruction))
        if key is None:
            self.out.append(instruction)
            return
        self.summing.setdefault(key, []).append(instruction)
        self.pending.update(dict.fromkeys(writes(instruction), key))

    def defer(self, instruction: Instruction) -> None:
        """Keeps an instruction until the update."""
        self.deferred.append(instruction)
        self.late.update(writes(instruction))

    def is_late(self, instruction: Instruction) -> bool:
        """Whether the instruction reads a value that is written just before the update."""
        return any(value in self.late for value in reads(instruction))

    def waits(self, instruction: Instruction) -> bool:
        """Whether the instruction reads a value that is not written yet."""
        return any(value in self.pending or value in self.late for value in reads(instruction))

    def flush(self, key: Hashable, *, last: bool = True) -> None:
        """Sends a bucket, with its riders if it is the last of its kind; the next steps of its
        values go to buckets of their own."""
        parts, following = self.open.pop(key, []), self.following.pop(key, [])
        sums = self.summing.pop(key, [])
        parts += self.riding.pop(key, []) if last else []
        if parts:
            self.out.append(merge(parts, self.costing))
        for part in (*parts, *following, *sums):
            for result in writes(part):
                self.pending.pop(result, None)
        for part in following:
            self.add(part)
        for part in sums:
            self.sum_up(part)

    def _settle(self, value: int) -> None:
        while value in self.pending:
            self.flush(self.pending[value])

    def _flush_deferred(self) -> None:
        waiting, self.deferred, self.late = self.deferred, [], set()
        for instruction in waiting:
            for value in reads(instruction):
                self._settle(value)
            self.out.append(instruction)

    def flush_all(self) -> None:
        """Sends all open buckets, then writes the instructions that waited for them."""
        while self.open or self.riding:
            self.flush(next(iter(self.open or self.riding)))
        self._flush_deferred()


def _riders(instructions: list[Instruction]) -> set[str]:
    """The reductions of values that are only reported, if gradients are sent in the same way."""
    messages = [i for i in instructions if isinstance(i, Communicate) and i.kind == "all_reduce"]
    sent = {kind_key(i) for i in messages if i.phase == "update"}
    needed = needed_in_training(instructions)
    return {i.id for i in messages if not needed & set(i.results) and kind_key(i) in sent}


def bucketed(instructions: list[Instruction], costing: Costing, size: int) -> list[Instruction]:
    """The instructions with messages of the update phase in buckets of `size` bytes: a bucket
    starts when it is full, and all start before the update. A value that is only reported (the
    loss) goes in the last bucket of its kind, which saves a message."""
    buckets = _Buckets(costing, size)
    riding, sums = _riders(instructions), summing(instructions)
    for instruction in instructions:
        if (
            isinstance(instruction, Communicate)
            and instruction.id in riding
            and not buckets.waits(instruction)
        ):
            buckets.ride(instruction)
        elif (
            isinstance(instruction, Communicate)
            and instruction.phase == "update"
            and instruction.asynchronous
        ):
            buckets.add(instruction)
        elif isinstance(instruction, Update):
            buckets.flush_all()
            buckets.out.append(instruction)
        elif instruction.id in sums and not buckets.is_late(instruction):
            buckets.sum_up(instruction)
        elif buckets.waits(instruction):
            buckets.defer(instruction)
        else:
            buckets.out.append(instruction)
    buckets.flush_all()
    return buckets.out
