"""Starts collectives as soon as their sources are written, so that compute runs beside them.

Instructions in order of need -> the same, some collectives earlier and asynchronous. Small messages
always start early: they are bound by latency. On a device that overlaps, so do large ones of
backward, and ops on which their source does not depend move behind their start: a column-parallel
layer's input gradient is summed while its weight gradients are multiplied. Which instructions move
depends only on their order and the device that was planned for, so all ranks have the same program,
whatever its times.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace

from cost_models.device import MATRIX_KINDS
from planner.program.program import (
    ACCUMULATE,
    Communicate,
    Compute,
    Instruction,
    reads,
    writes,
)

__all__ = ["SMALL", "starts_beside_backward", "started_early"]

#: Messages up to this size are bound by latency, and holding them a little longer costs no memory
#: to speak of.
SMALL = 64 * 1024

#: How many instructions back ops that move behind a start may come from, and the most products
#: among them: their operands are held that much longer.
_WINDOW, _PRODUCTS = 48, 3


def starts_beside_backward(written: str, read: str) -> bool:
    """Whether a change of layout of a value that is written and read in these phases may run beside
    compute. Not for a value of forward: its copy for backward would be held from there on, and
    forward's own copies are read at once."""
    return written == read == "backward"


def started_early(instructions: list[Instruction], *, overlaps: bool) -> list[Instruction]:
    """The instructions with messages started where their source is written, and waited for where
    they are read; large ones only if the device `overlaps` them with compute."""
    large = _large(instructions) if overlaps else {}
    early = large | {i.id: i for i in _waited_for(instructions) if i.nbytes <= SMALL}
    after: dict[int, list[Communicate]] = defaultdict(list)
    for message in early.values():
        after[message.sources[0]].append(replace(message, asynchronous=True))
    out: list[Instruction] = []

    def write(instruction: Instruction) -> None:
        out.append(instruction)
        for value in writes(instruction):
            for waiting in after.pop(value, []):
                write(waiting)

    written = {value for instruction in instructions for value in writes(instruction)}
    for carried in [source for source in after if source not in written]:
        for waiting in after.pop(carried):  # its source is there from the beginning
            write(waiting)
    for instruction in instructions:
        if instruction.id not in early:
            write(instruction)
    out += [left for messages in after.values() for left in messages]
    return _blocking_where_alone(_filled(out, large), large) if large else out


def _waited_for(instructions: list[Instruction]) -> list[Communicate]:
    """The messages of forward and backward that compute would wait for."""
    messages = [
        i
        for i in instructions
        if isinstance(i, Communicate) and i.kind != "slice" and not i.asynchronous
    ]
    return [message for message in messages if message.phase != "update"]


def _large(instructions: list[Instruction]) -> dict[str, Communicate]:
    """The large messages of backward whose sources backward wrote, by id."""
    written = {
        value: instruction.phase for instruction in instructions for value in writes(instruction)
    }

    def beside(message: Communicate) -> bool:
        return all(
            starts_beside_backward(written.get(source, "forward"), message.phase)
            for source in message.sources
        )

    return {i.id: i for i in _waited_for(instructions) if i.nbytes > SMALL and beside(i)}


def _filled(instructions: list[Instruction], large: dict[str, Communicate]) -> list[Instruction]:
    """The instructions with products moved from before a large message to behind its start, if it
    has none to run beside. A product beside one message is not moved on to the next."""
    out: list[Instruction] = []
    since = 0
    under_way: set[int] = set()
    for position, instruction in enumerate(instructions):
        if not under_way.isdisjoint(reads(instruction)):
            under_way.difference_update(reads(instruction))
            since = len(out)
        moved: list[Instruction] = []
        if instruction.id in large:
            since = max(since, len(out) - _WINDOW) if not under_way else len(out)
            if not _has_product(instructions, position):
                out[since:], moved = _parted(out[since:], instruction)
            under_way.update(writes(instruction))
        out += [instruction, *moved]
    return out


def _has_product(instructions: list[Instruction], at: int) -> bool:
    """Whether there is a product between the message at index `at` and its first reader."""
    results = set(writes(instructions[at]))
    for following in itertools.islice(instructions, at + 1, None):
        if not results.isdisjoint(reads(following)):
            return False
        if following.kind in MATRIX_KINDS:
            return True
    return False


def _parted(
    window: list[Instruction], message: Instruction
) -> tuple[list[Instruction], list[Instruction]]:
    """The instructions that stay before a message, and those that move behind its start: the
    nearest products of backward that it does not depend on, ops on their results, and the sums
    over microbatches and reductions of the gradients among these."""
    needed = set(reads(message))
    moved: list[Instruction] = []
    num_products = 0
    for instruction in reversed(window):
        kernel = isinstance(instruction, Compute) and (
            instruction.phase == "backward" or instruction.op == ACCUMULATE
        )
        movable = kernel or (isinstance(instruction, Communicate) and instruction.phase == "update")
        if movable and needed.isdisjoint(writes(instruction)):
            moved.append(instruction)
            num_products += instruction.kind in MATRIX_KINDS
            if num_products == _PRODUCTS:
                break
        else:
            needed.update(reads(instruction))
    if not num_products:
        return window, []
    gone = {instruction.id for instruction in moved}
    return [i for i in window if i.id not in gone], moved[::-1]


def _blocking_where_alone(
    instructions: list[Instruction], large: dict[str, Communicate]
) -> list[Instruction]:
    """The instructions with large messages made synchronous if nothing runs beside them before they
    are read."""
    open_: dict[int, str] = {}  # a result that nothing has read yet -> its message
    alone = set(large)
    for instruction in instructions:
        for value in reads(instruction):
            open_.pop(value, None)
        if isinstance(instruction, Compute) and instruction.kind != "view":
            alone.difference_update(open_.values())
        if instruction.id in large:
            open_.update(dict.fromkeys(writes(instruction), instruction.id))
    return [
        replace(i, asynchronous=False) if isinstance(i, Communicate) and i.id in alone else i
        for i in instructions
    ]
