"""The checker of instructions after every pass that orders, merges or replaces them, before and
after frees are known.

Instructions -> faults, one line each. The values that come from outside the step are not known
here: a value that no instruction writes is assumed to be one. So if a value that is read is written
at all, it must be written before.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from planner.graph.graph import Group
from planner.graph.layout import Mesh
from planner.program.check import foreign_faults
from planner.program.check_messages import message_faults
from planner.program.program import (
    Communicate,
    Compute,
    Instruction,
    in_place,
    reads,
    writes,
)

__all__ = ["lost_faults", "order_faults"]

_PHASES = ("forward", "backward", "update")


def order_faults(instructions: Sequence[Instruction], mesh: Mesh) -> Iterator[str]:
    """The faults of instructions in their order."""
    for name, count in Counter(instruction.id for instruction in instructions).items():
        if count > 1:
            yield f"{count} instructions are called {name}"
    yield from foreign_faults(instructions)
    yield from _written_faults(instructions)
    yield from _waits_faults(instructions)
    for instruction in instructions:
        yield from _own_faults(instruction, mesh)


def _written_faults(instructions: Sequence[Instruction]) -> Iterator[str]:
    """Values that are read before they are written, or written twice."""
    awaited = Counter(value for instruction in instructions for value in writes(instruction))
    written: set[int] = set()
    for instruction in instructions:
        for value in dict.fromkeys(reads(instruction)):
            if value in awaited and value not in written and value != in_place(instruction):
                yield f"{instruction.id} reads value {value}, which is written later"
        for value in writes(instruction):
            if value in written:
                yield f"{instruction.id} writes value {value}, which is written before"
            written.add(value)


def _waits_faults(instructions: Sequence[Instruction]) -> Iterator[str]:
    """Messages that wait for messages that are not under way."""
    under_way: dict[int, str] = {}
    for instruction in instructions:
        for value in (*reads(instruction), *instruction.frees):
            message = under_way.get(value)
            if message is not None:
                under_way = {v: m for v, m in under_way.items() if m != message}
        if not isinstance(instruction, Communicate):
            continue
        for value in instruction.after:
            if value not in under_way:
                yield f"{instruction.id} starts after value {value}, which no message under way gives"
        done = {under_way.get(value) for value in instruction.after}
        under_way = {v: m for v, m in under_way.items() if m not in done} if done else under_way
        if instruction.asynchronous:
            under_way.update(dict.fromkeys(instruction.results, instruction.id))


def _own_faults(instruction: Instruction, mesh: Mesh) -> Iterator[str]:
    """The faults of an instruction by itself."""
    if instruction.phase not in _PHASES:
        yield f"{instruction.id} is of phase {instruction.phase!r}: {', '.join(_PHASES)}"
    times = {"time": instruction.time}
    if isinstance(instruction, Communicate):
        times |= {"packing": instruction.packing, "unpacking": instruction.unpacking}
        yield from message_faults(instruction, mesh)
    for name, seconds in times.items():
        if not 0 <= seconds < math.inf:
            yield f"{instruction.id} takes {seconds} seconds ({name})"
    if isinstance(instruction, Compute):
        yield from _compute_faults(instruction, mesh)


def _compute_faults(instruction: Compute, mesh: Mesh) -> Iterator[str]:
    counts = {len(part) for part in (instruction.results, instruction.shapes, instruction.dtypes)}
    if len(counts) > 1:
        yield f"{instruction.id} has unlike numbers of results, shapes and dtypes: {sorted(counts)}"
    for group in _groups(instruction.args):
        if not {*group.axes} <= {*range(len(mesh.sizes))}:
            yield f"{instruction.id} is over axes {group.axes}, the mesh is {mesh}"


def _groups(args: object) -> Iterator[Group]:
    if isinstance(args, Group):
        yield args
    elif isinstance(args, tuple):
        for item in args:
            yield from _groups(item)


def lost_faults(before: Sequence[Instruction], after: Sequence[Instruction]) -> Iterator[str]:
    """Values that a pass has lost or added: it may only order and merge."""
    was, now = ({value for one in some for value in writes(one)} for some in (before, after))
    if was - now:
        yield f"values {sorted(was - now)} are written no more"
    if now - was:
        yield f"values {sorted(now - was)} are written by nothing of before"
    unread = {value for one in before for value in reads(one)} ^ {
        value for one in after for value in reads(one)
    }
    if unread:
        yield f"values {sorted(unread)} are read before the pass or after it alone"
