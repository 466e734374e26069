"""The full checker of a `Program`: beside the checks of every lowering (`check`), that nothing
leaks, that shapes follow from layouts and from each other, and that seconds and bytes are valid.

Program -> faults, one line each, which names the instruction. It takes about as long as lowering,
so it is only for tests and `--check`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from cost_models.memory import dtype_bytes
from planner.graph.layout import Mesh, local_shape
from planner.program.actions import few, show_actions
from planner.program.check import faults
from planner.program.check_messages import Kind, meeting_faults, meetings, sent_faults
from planner.program.check_order import order_faults
from planner.program.program import (
    Communicate,
    Instruction,
    Program,
    Update,
    given_kinds,
    writes,
)

__all__ = ["program_faults", "ranks_faults"]


def program_faults(program: Program) -> Iterator[str]:
    """All faults of a program by itself."""
    yield from faults(program)
    yield from _leaks(program)
    unlike = [f for body in program.bodies.values() for f in order_faults(body, program.mesh)]
    yield from unlike
    if not unlike:  # else some values have no shape
        yield from _shape_faults(program)
        yield from _bytes_faults(program)


def ranks_faults(mesh: Mesh, programs: dict[int, Program]) -> Iterator[str]:
    """Faults between the programs of several ranks of a mesh: all must run the same instructions,
    and meet in every collective."""
    first, *others = sorted(programs)
    names = [instruction.id for instruction in programs[first].written]
    for rank in others:
        if programs[rank].actions != programs[first].actions:
            yield (
                f"rank {rank} runs {show_actions(programs[rank].actions)}, rank {first} "
                f"{show_actions(programs[first].actions)}"
            )
            continue
        for number, instruction in enumerate(programs[rank].written):
            if number >= len(names) or instruction.id != names[number]:
                has = names[number] if number < len(names) else "none"
                yield f"instruction {number} of rank {rank} is {instruction.id}, of rank {first} {has}"
                break
    yield from meeting_faults(mesh, {rank: meetings(program) for rank, program in programs.items()})


def _leaks(program: Program) -> Iterator[str]:
    """Values that are never freed and are no result of the step."""
    given = {
        *(value for _, value in program.told),
        *(one.value for one in program.sent),
        *(() if program.squares is None else program.squares[:1]),
        *(value for _, value in program.stores),
    }
    freed = {value for instruction in program.written for value in instruction.frees}
    kept = given | program.trained | {state.value for state in program.inputs}
    for instruction in program.written:
        for value in writes(instruction):
            if value not in freed and value not in kept:
                yield f"{instruction.id} writes value {value}, which is never freed"


def _shape_faults(program: Program) -> Iterator[str]:
    """Wrong shapes and dtypes of messages, of the update and of the step's results."""
    kinds = dict(given_kinds(program))
    for instruction in _in_few_actions(program):
        if isinstance(instruction, Update):
            yield from _update_faults(program, instruction, kinds)
            continue
        if isinstance(instruction, Communicate):
            yield from sent_faults(instruction, kinds, program.mesh, program.rank or 0)
        kinds |= {
            value: (shape, dtype)
            for value, shape, dtype in zip(
                instruction.results, instruction.shapes, instruction.dtypes, strict=True
            )
            if value is not None
        }
    for name, value in program.told:
        if value in kinds and math.prod(kinds[value][0]) != 1:
            yield f"the step gives {name} as value {value} of shape {kinds[value][0]}: one number is due"
    for held, new in program.stores:
        if kinds.get(held) != kinds.get(new):
            yield f"buffer value {held} is {_words(kinds.get(held))} and becomes value {new}, {_words(kinds.get(new))}"


def _in_few_actions(program: Program) -> Iterator[Instruction]:
    """The instructions in the order in which they run, without those of third and later actions of
    the same body."""
    for action in few(program.actions):
        yield from program.bodies[action.body]


def _update_faults(program: Program, update: Update, kinds: dict[int, Kind]) -> Iterator[str]:
    """Parameters without a gradient in the layout and format in which they are updated."""
    if len(update.gradients) != len(program.parameters):
        yield f"{update.id} has {len(update.gradients)} gradients for {len(program.parameters)} parameters"
        return
    place = program.mesh.coordinate(program.rank or 0)
    for parameter, gradient in zip(program.parameters, update.gradients, strict=True):
        due = (
            local_shape(parameter.subshape, parameter.updated, program.mesh.sizes, place),
            parameter.master or parameter.dtype,
        )
        if kinds.get(gradient, due) != due:
            yield (
                f"{update.id} reads value {gradient}, {_words(kinds[gradient])}, for parameter "
                f"{parameter.name!r}, whose piece is {_words(due)}"
            )


def _words(kind: Kind | None) -> str:
    return "nothing" if kind is None else f"{kind[1]}{list(kind[0])}"


def _bytes_faults(program: Program) -> Iterator[str]:
    """Values whose bytes are missing or wrong: a view has 0 bytes, a held value those of its
    shape."""
    for name, nbytes in program.initial_bytes.items():
        if nbytes < 0:
            yield f"{nbytes} bytes of {name} are held before the step"
    for value, (shape, dtype) in given_kinds(program):
        due = math.prod(shape) * dtype_bytes(dtype)
        if program.value_bytes.get(value) != due:
            yield (
                f"value {value}, given, is accounted as {program.value_bytes.get(value)} bytes, "
                f"it is {_words((shape, dtype))}"
            )
    for instruction in program.written:
        for value in writes(instruction):
            if program.value_bytes.get(value, -1) < 0:
                yield f"{instruction.id} writes value {value}, accounted as {program.value_bytes.get(value)} bytes"
        if isinstance(instruction, Communicate):
            for value, shape, dtype in zip(
                instruction.results, instruction.shapes, instruction.dtypes, strict=True
            ):
                nbytes = program.value_bytes.get(value, 0)
                due = math.prod(shape) * dtype_bytes(dtype)
                if nbytes != due and not (nbytes == 0 and instruction.kind == "slice"):
                    yield (
                        f"{instruction.id} writes value {value}, accounted as {nbytes} bytes, it "
                        f"is {_words((shape, dtype))}"
                    )
