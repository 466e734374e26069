"""What every `Program` keeps to: the values that its instructions read are its own, written before, not freed, and as they were made.

Program -> faults. A reference to a graph's value left in a program would be read as whatever the program has under that number, or be
passed over where values are freed: wrong without a word. So lowering checks each program that it makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.graph import Ref as GraphRef
from planner.graph import Serial
from planner.program import Communicate, Compute, Instruction, Program, Ref, Update
from planner.schedule import reads, writes

__all__ = ["faults"]


def faults(program: Program) -> tuple[str, ...]:
    """What is wrong with a program, a line each; none where it can be run."""
    return (*_foreign(program), *_lifetimes(program), *_overwritten(program))


def _foreign(program: Program) -> Iterator[str]:
    """Arguments that are of the graph, or values that no operand tells of."""
    for instruction in program.instructions:
        if isinstance(instruction, Compute):
            found: list[Any] = []
            _collect((instruction.args, instruction.kwargs), found)
            if tuple([one.id if type(one) is Ref else None for one in found]) != instruction.operands:
                yield f"{instruction.id} has arguments other than its operands: {found} for {instruction.operands}"


def _collect(argument: Any, found: list[Any]) -> None:
    """Adds all that stands for a value in an argument, whatever it is nested in."""
    if isinstance(argument, tuple | list):
        for item in argument:
            _collect(item, found)
    elif isinstance(argument, dict):
        _collect(tuple(argument.values()), found)
    elif isinstance(argument, slice):
        _collect((argument.start, argument.stop, argument.step), found)
    elif isinstance(argument, Ref | GraphRef | Serial):
        found.append(argument)


def _lifetimes(program: Program) -> Iterator[str]:
    """Values that are read before they are written or after they are freed, and those written or freed twice."""
    state = {value for one in program.parameters for value in (one.value, one.shard)}
    alive = state | {one.value for one in program.inputs}
    known = set(alive)
    for instruction in program.instructions:
        made = writes(instruction)
        if not alive.issuperset(reads(instruction)):
            yield f"{instruction.id} reads {sorted({*reads(instruction)} - alive)}, which are not written, or freed"
        if not known.isdisjoint(made) and known.intersection(made) - state:
            yield f"{instruction.id} writes {made}, of which some were written before"
        alive.update(made)
        known.update(made)
        if not alive.issuperset(instruction.frees) or len({*instruction.frees}) != len(instruction.frees):
            yield f"{instruction.id} frees {instruction.frees}, of which some are not there"
        alive.difference_update(instruction.frees)
    kept = {program.loss, *(value for _, value in program.reported), *(value for pair in program.stores for value in pair)}
    if not alive.issuperset(kept | state):
        yield f"the step ends without {sorted((kept | state) - alive)}"


def _overwritten(program: Program) -> Iterator[str]:
    """What forward or backward reads, or the step gives, of a parameter after the update wrote to it."""
    trained = {value for one in program.parameters for value in (one.value, one.shard)}
    updated = False
    for instruction in program.instructions:
        updated |= isinstance(instruction, Update)
        if updated and instruction.phase != "update" and trained.intersection(reads(instruction)):
            yield f"{instruction.id} reads {sorted(trained.intersection(reads(instruction)))}, parameters, after their update"
        if _is_view(instruction) and trained.intersection(reads(instruction)):
            trained.update(writes(instruction))
    given = trained.intersection({program.loss, *(value for _, value in program.reported)})
    if given:
        yield f"the step gives {sorted(given)}, which the update writes to"


def _is_view(instruction: Instruction) -> bool:
    """Whether a result shares memory with what is read, or, of an asynchronous message, is still on its way from it."""
    if isinstance(instruction, Communicate):
        return instruction.kind == "slice" or instruction.asynchronous
    return isinstance(instruction, Compute) and instruction.kind == "view"
