"""How many reductions of gradients are under way at once.

What is reduce-scattered is held whole, by the buffer that is sent, until it is waited for; and nothing reads the pieces before the
update. Without a bound a step would hold all gradients whole, which is what keeping them in pieces is to avoid.

Instructions in their final order -> the same, some with `after`.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import replace

from planner.program import Communicate, Instruction, reads

__all__ = ["IN_FLIGHT", "bounded"]

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
