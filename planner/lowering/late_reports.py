"""Moves the waits for values that are only reported to the end of the step."""

from __future__ import annotations

from planner.program.program import Communicate, Instruction, Update, reads, writes

__all__ = ["needed_in_training", "waited_late"]


def waited_late(
    instructions: list[Instruction], alias: dict[int, int], trained: frozenset[int]
) -> list[Instruction]:
    """The instructions with those that only the reported loss needs moved to the end of the step,
    so that backward does not wait for them. Those that read a parameter, and those that they depend
    on, go just before the update, which writes to it."""
    needed = needed_in_training(instructions)
    waiting: set[int] = set()
    late: list[Instruction] = []
    out: list[Instruction] = []
    for instruction in instructions:
        written = set(writes(instruction))
        reported = bool(written) and not needed & written and instruction.phase != "update"
        if reported and waiting & set(reads(instruction)):
            waiting |= written
            late.append(instruction)
            continue
        if reported and isinstance(instruction, Communicate) and instruction.asynchronous:
            waiting |= written
        out.append(instruction)
    at = next(
        (place for place, instruction in enumerate(out) if isinstance(instruction, Update)),
        len(out),
    )
    before, after = _parted(late, _of_parameters(instructions, alias, trained))
    return [*out[:at], *before, *out[at:], *after]


def _of_parameters(
    instructions: list[Instruction], alias: dict[int, int], trained: frozenset[int]
) -> set[int]:
    """The values that may share memory with a parameter (a slice may be a view), or are being sent
    from it."""
    found = set(trained)
    for instruction in instructions:
        looks = isinstance(instruction, Communicate) and (
            instruction.asynchronous or instruction.kind == "slice"
        )
        started = looks and found.intersection(reads(instruction))
        found.update(value for value in writes(instruction) if started or alias.get(value) in found)
    return found


def _parted(late: list[Instruction], held: set[int]) -> tuple[list[Instruction], list[Instruction]]:
    """The instructions that read a value of `held` or are read by one that does; and the others."""
    before: list[Instruction] = []
    after: list[Instruction] = []
    wanted = set(held)
    for instruction in reversed(late):
        first = wanted.intersection(reads(instruction)) or wanted.intersection(writes(instruction))
        (before if first else after).append(instruction)
        if first:
            wanted.update(reads(instruction))
    return before[::-1], after[::-1]


def needed_in_training(instructions: list[Instruction]) -> set[int]:
    """The values that training needs; all others are only reported."""
    needed: set[int] = set()
    for instruction in reversed(instructions):
        if (
            isinstance(instruction, Update)
            or needed & set(writes(instruction))
            or instruction.phase == "update"
        ):
            needed.update(reads(instruction))
    return needed
