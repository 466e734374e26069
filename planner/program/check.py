"""The checker that lowering runs on every `Program`: the values that its instructions read are the
program's own, written before, not freed, and not overwritten.

Program -> faults. A reference to a graph's value left in a program would be read as whatever value
the program has under that number, or be missed when values are freed: a silent wrong answer. So
lowering checks each program that it makes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from planner.graph.graph import Ref as GraphRef
from planner.graph.graph import Serial
from planner.program.actions import few
from planner.program.copies import slice_copies
from planner.program.program import (
    Communicate,
    Compute,
    Instruction,
    Program,
    Ref,
    Update,
    in_place,
    reads,
    writes,
)

__all__ = ["faults", "foreign_faults"]

#: Types of arguments that hold no value. Most arguments have one of these types, and every argument
#: of every program is checked.
_PLAIN = frozenset((int, float, bool, str, type(None)))


def faults(program: Program) -> tuple[str, ...]:
    """The faults of a program, one line each; none if it can be run."""
    missing = {action.body for action in program.actions} - program.bodies.keys()
    if missing:
        return (f"the step runs {', '.join(sorted(missing))}, which have no instructions",)
    return (*foreign_faults(program.written), *_lifetimes(program), *_overwritten(program))


def foreign_faults(instructions: Iterable[Instruction]) -> Iterator[str]:
    """Arguments that belong to the graph, or values that are not among the operands."""
    for instruction in instructions:
        if isinstance(instruction, Compute):
            found: list[Any] = []
            _collect(instruction.args, found)
            _collect(instruction.kwargs, found)
            if tuple(found) != instruction.operands:
                yield f"{instruction.id} has arguments other than its operands: {found} for {instruction.operands}"


def _collect(items: Iterable[Any], found: list[Any]) -> None:
    """Adds to `found` the ids of the program's values among nested arguments, and unchanged any
    reference of another kind."""
    for item in items:
        kind = type(item)
        if kind is Ref:
            found.append(item.id)
        elif kind in _PLAIN:
            continue
        elif isinstance(item, tuple | list):
            _collect(item, found)
        elif isinstance(item, dict):
            _collect(item.values(), found)
        elif isinstance(item, slice):
            _collect((item.start, item.stop, item.step), found)
        elif isinstance(item, GraphRef | Serial):
            found.append(item)


def _lifetimes(program: Program) -> Iterator[str]:
    """Values that are read before they are written or after they are freed, and those written or
    freed twice; values that outlive their action, though they are not carried."""
    state = program.trained
    given = state | {one.value for one in program.inputs}
    replacing = {new for old, new in program.stores if old in program.stored_by_all}
    sent = {one.value for one in program.sent}
    own = set() if program.squares is None else {program.squares[0]}
    alive = set(given)
    actions = few(program.actions)
    stash: dict[int, set[int]] = defaultdict(set)
    for number, action in enumerate(actions, start=1):
        alive |= stash.pop(action.microbatch, set())
        yield from _lifetimes_of(program.bodies[action.body], alive, state)
        alive -= sent  # they leave at the end of the action
        if number < len(actions):
            alive -= replacing
            stash[action.microbatch] = alive & program.stashed
            alive -= program.stashed
            left = alive - given - program.carried - own
            if left:
                yield f"{action} ends with {sorted(left)}, which are not carried"
    for microbatch, stashed in stash.items():
        if stashed:
            yield f"microbatch {microbatch} ends with {sorted(stashed)}, stashed for no action"
    kept = {
        *(value for _, value in program.told),
        *(value for pair in program.stores for value in pair),
    }
    if not alive.issuperset(kept | state):
        yield f"the step ends without {sorted((kept | state) - alive)}"
    if not alive.isdisjoint(program.carried - kept):
        yield f"the step ends with {sorted(alive & (program.carried - kept))}, carried to no action"


def _lifetimes_of(
    instructions: Iterable[Instruction], alive: set[int], state: frozenset[int]
) -> Iterator[str]:
    """The same in one action, which begins with the values `alive`, and leaves there those that it
    ends with."""
    known = set(alive)
    for instruction in instructions:
        made, read, frees = writes(instruction), reads(instruction), instruction.frees
        if not alive.issuperset(read):
            yield f"{instruction.id} reads {sorted({*read} - alive)}, which are not written, or freed"
        if not known.isdisjoint(made) and known.intersection(made) - state - {
            in_place(instruction)
        }:
            yield f"{instruction.id} writes {made}, of which some were written before"
        alive.update(made)
        known.update(made)
        if frees and (not alive.issuperset(frees) or len({*frees}) != len(frees)):
            yield f"{instruction.id} frees {frees}, of which some are not there"
        alive.difference_update(frees)


def _overwritten(program: Program) -> Iterator[str]:
    """Readings of a parameter's old value, by forward, backward or the step's results, after the
    update has written to it."""
    trained = set(program.trained)
    updated = False
    for instruction in program.written:
        updated |= isinstance(instruction, Update)
        if updated and instruction.phase != "update" and trained.intersection(reads(instruction)):
            yield (
                f"{instruction.id} reads {sorted(trained.intersection(reads(instruction)))}, "
                "parameters, after their update"
            )
        if _is_view(instruction) and trained.intersection(reads(instruction)):
            trained.update(writes(instruction))
    given = trained.intersection({value for _, value in program.told})
    if given:
        yield f"the step gives {sorted(given)}, which the update writes to"


def _is_view(instruction: Instruction) -> bool:
    """Whether a result shares memory with an operand, or is still being received from it in an
    asynchronous message."""
    if isinstance(instruction, Communicate):
        return instruction.asynchronous or (
            instruction.kind == "slice" and not slice_copies(instruction)
        )
    return isinstance(instruction, Compute) and instruction.kind == "view"
