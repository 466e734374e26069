"""Bounds how many reductions of gradients are under way at once.

A gradient that is reduce-scattered is held whole, in the buffer that is sent, until it is waited
for; and nothing reads the pieces before the update. Without a bound a step would hold all gradients
whole, which is exactly what keeping them in pieces should avoid.

The next step of a reduced gradient (a slice, or a message over another axis, which may have to be
packed) is delayed too: otherwise compute would wait for the links at once, although nothing reads
its result before the update.

Instructions in their final order -> the same, some with `after`, and next steps later.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cost_models.device import MATRIX_KINDS
from planner.lowering.reduced_sums import summing, term_of
from planner.program.program import Communicate, Instruction, reads, writes

__all__ = ["IN_FLIGHT", "bounded", "continued_late"]

#: Reductions under way on one communicator. One is sent while the next fills; FSDP2 waits for the
#: last before it starts one.
IN_FLIGHT = 2

#: The next message of a reduced gradient starts just before so many products later: by then the
#: reduction is mostly done, and the next message is not late either. In the simulator 1 is too few
#: (gpt2-xl on 8 H100, mesh 4x2: 123.6 ms against 121.4) and 4 no better.
PRODUCTS = 3


def bounded(instructions: list[Instruction]) -> list[Instruction]:
    """The instructions in which each asynchronous reduce-scatter waits, before it starts, for the
    last but one on its communicator, if nothing has yet. If the communicator keeps up with compute,
    that one is done; if not, compute waits then instead of at the update."""
    under_way: dict[tuple[int, ...], deque[Communicate]] = defaultdict(deque)
    out: list[Instruction] = []
    for instruction in instructions:
        used = set(reads(instruction))
        for messages in under_way.values():
            for message in [m for m in messages if used.intersection(m.results)]:
                messages.remove(message)
        if (
            isinstance(instruction, Communicate)
            and instruction.asynchronous
            and instruction.kind == "reduce_scatter"
        ):
            queue = under_way[instruction.axes]
            if len(queue) == IN_FLIGHT:
                instruction = replace(instruction, after=queue.popleft().results)
            queue.append(instruction)
        out.append(instruction)
    return out


@dataclass
class _Next:
    """The delayed next step of a reduced gradient, and the message that it waits for; with the
    numbers of messages on that communicator and of products since the message was sent."""

    instruction: Instruction
    message: Communicate
    started: int = 0
    products: int = 0

    @property
    def is_due(self) -> bool:
        """Whether the step is due. A message is delayed less than a slice or a sum, since others
        follow."""
        return self.products >= PRODUCTS if self.sends else self.started >= IN_FLIGHT

    @property
    def needs(self) -> int:
        """The value that the step goes on from."""
        return term_of(self.instruction)

    @property
    def waits_for(self) -> tuple[int, ...]:
        """The values from which on the delay counts. Views and the sum that reads them are delayed
        as one."""
        sends = isinstance(self.instruction, Communicate)
        return reads(self.instruction) if sends else self.message.results

    @property
    def sends(self) -> bool:
        """Whether the step is a message."""
        return isinstance(self.instruction, Communicate) and self.instruction.kind != "slice"


def continued_late(instructions: list[Instruction]) -> list[Instruction]:
    """The instructions with next steps of asynchronous messages of the update phase delayed. A
    slice, or a sum over microbatches, comes after the start of the next message on the
    communicator, just before a third would be under way; a further message comes just before the
    `PRODUCTS`-th product. All come before their readers."""
    # Values that are under way, and delayed values made of them -> the message.
    sent: dict[int, Communicate] = {}
    waiting: list[_Next] = []
    unwritten: set[int] = set()  # results of delayed instructions
    sums = summing(instructions)
    out: list[Instruction] = []

    def write(instruction: Instruction) -> None:
        """Writes an instruction; if it is a product or starts a reduction, after those next
        steps that are due by it."""
        started = (
            instruction
            if isinstance(instruction, Communicate) and _is_reduction(instruction)
            else None
        )
        if started or instruction.kind in MATRIX_KINDS:
            for one in [one for one in waiting if unwritten.isdisjoint(one.waits_for)]:
                one.started += started is not None and started.axes == one.message.axes
                one.products += started is None
        while ready := [one for one in waiting if one.is_due and one.needs not in unwritten]:
            settle(ready)
        if started:
            sent.update(dict.fromkeys(started.results, started))
        unwritten.difference_update(writes(instruction))
        out.append(instruction)

    def settle(ready: list[_Next]) -> None:
        for one in ready:
            if one in waiting:  # and not written before what another of these starts
                waiting.remove(one)
                needed = set(reads(one.instruction))
                settle(
                    [other for other in waiting if not needed.isdisjoint(writes(other.instruction))]
                )
                write(one.instruction)

    for instruction in instructions:
        if _continues(instruction, sent, sums):
            message = sent[term_of(instruction)]
            following = _Next(instruction, message)
            waiting.append(following)
            unwritten.update(writes(instruction))
            now = instruction if following.sends else message
            sent.update(dict.fromkeys(writes(instruction), now))  # type: ignore[arg-type]
            continue
        if waiting:
            used = set(reads(instruction))
            if not used.isdisjoint(unwritten):
                settle(list(waiting))
            settle(
                [one for one in waiting if one.sends and not used.isdisjoint(one.message.results)]
            )
        write(instruction)
    settle(list(waiting))
    return out


def _is_reduction(message: Communicate) -> bool:
    return message.phase == "update" and message.asynchronous


def _continues(instruction: Instruction, sent: Mapping[int, Communicate], sums: set[str]) -> bool:
    """Whether an instruction is a slice or a message of a result of the messages in `sent`, or one
    of `sums` that adds it."""
    if instruction.id in sums:
        return term_of(instruction) in sent
    if not isinstance(instruction, Communicate) or instruction.phase != "update":
        return False
    return (instruction.kind == "slice" or instruction.asynchronous) and sent.keys() >= set(
        instruction.sources
    )
