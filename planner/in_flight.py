"""How many reductions of gradients are under way at once.

What is reduce-scattered is held whole, by the buffer that is sent, until it is waited for; and nothing reads the pieces before the
update. Without a bound a step would hold all gradients whole, which is what keeping them in pieces is to avoid.

What is cut from a reduced gradient is cut as late: compute would wait for the links at once, and nothing reads the piece before the
update.

Instructions in their final order -> the same, some with `after`, and slices later.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, replace

from planner.program import Communicate, Instruction, reads, writes

__all__ = ["IN_FLIGHT", "bounded", "sliced_late"]

#: Reductions under way on one communicator. One is sent while the next fills; FSDP2 waits for the last before it starts one.
IN_FLIGHT = 2


def bounded(instructions: list[Instruction]) -> list[Instruction]:
    """Each asynchronous reduce-scatter waits, before it starts, for the last but one on its communicator, if nothing did before. Where
    the communicator keeps up with compute that one is done; where it does not, compute waits then and not at the update."""
    under_way: dict[tuple[int, ...], deque[Communicate]] = defaultdict(deque)
    out: list[Instruction] = []
    for instruction in instructions:
        used = set(reads(instruction))
        for messages in under_way.values():
            for message in [m for m in messages if used.intersection(m.results)]:
                messages.remove(message)
        if isinstance(instruction, Communicate) and instruction.asynchronous and instruction.kind == "reduce_scatter":
            queue = under_way[instruction.axes]
            if len(queue) == IN_FLIGHT:
                instruction = replace(instruction, after=queue.popleft().results)
            queue.append(instruction)
        out.append(instruction)
    return out


@dataclass
class _Slice:
    """A slice that is put off, and how many messages have started since on the communicator that it waits for."""

    instruction: Communicate
    axes: tuple[int, ...]
    started: int = 0


def sliced_late(instructions: list[Instruction]) -> list[Instruction]:
    """Slices of what an asynchronous message of the update phase gives, behind the start of the next one on its communicator: just
    before a third would be under way, or before what reads them."""
    sent: dict[int, tuple[int, ...]] = {}  # what is under way, and the pieces of it that are put off -> the communicator
    waiting: list[_Slice] = []
    out: list[Instruction] = []

    def write(ready: list[_Slice]) -> None:
        for one in ready:
            waiting.remove(one)
            out.append(one.instruction)

    for instruction in instructions:
        message = isinstance(instruction, Communicate) and instruction.phase == "update"
        if isinstance(instruction, Communicate) and message and instruction.kind == "slice" and instruction.sources[0] in sent:
            axes = sent[instruction.sources[0]]
            waiting.append(_Slice(instruction, axes))
            sent.update(dict.fromkeys(instruction.results, axes))
            continue
        if waiting and not set(reads(instruction)).isdisjoint(v for one in waiting for v in writes(one.instruction)):
            write(list(waiting))
        if isinstance(instruction, Communicate) and message and instruction.asynchronous:
            for one in waiting:
                one.started += one.axes == instruction.axes
            write([one for one in waiting if one.started >= IN_FLIGHT])
            sent.update(dict.fromkeys(instruction.results, instruction.axes))
        out.append(instruction)
    return out + [one.instruction for one in waiting]
