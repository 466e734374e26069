"""The category of memory that each value of a program counts in."""

from __future__ import annotations

from planner.program.program import (
    ACCUMULATE,
    Communicate,
    Compute,
    Instruction,
    Program,
    reads,
    runs_again,
    writes,
)

__all__ = ["CATEGORIES", "NUMBER", "categories_of", "values_of_parameters"]

#: The categories of memory, in the order of the report. `inputs`: the batch; `gathered`: results of
#: communication, and cast parameters; `temporaries`: workspaces of ops, and values of backward that
#: are not gradients of parameters.
CATEGORIES = (
    "parameters",
    "optimizer",
    "gradients",
    "activations",
    "gathered",
    "temporaries",
    "inputs",
)
#: The place of each in that order.
NUMBER = {name: number for number, name in enumerate(CATEGORIES)}


def categories_of(program: Program) -> dict[int, int]:
    """The category of each value, as an index. Gradients are the values that the update reads, and
    those reduced for it; others go by their writer and its phase."""
    gradients: set[int] = set()
    for instruction in reversed(tuple(program.written)):
        if instruction.kind == "optimizer" or (
            gradients.intersection(writes(instruction)) and _passes_on(instruction)
        ):
            gradients.update(reads(instruction))
    parameters = {state.value for state in program.parameters}
    of_parameters = values_of_parameters(program)
    out: dict[int, int] = {}
    for instruction in program.written:
        for value in writes(instruction):
            name = (
                "parameters" if value in parameters else "gradients" if value in gradients else ""
            )
            out[value] = NUMBER[name or _category(instruction, value in of_parameters)]
    return out


def _passes_on(instruction: Instruction) -> bool:
    """Whether an instruction's result is its operand: in another layout, shape or sum."""
    return (
        isinstance(instruction, Communicate)
        or instruction.kind == "view"
        or (isinstance(instruction, Compute) and instruction.op == ACCUMULATE)
    )


def _category(instruction: Instruction, of_parameter: bool) -> str:
    if isinstance(instruction, Compute) and not of_parameter:
        of_forward = instruction.phase == "forward" or runs_again(instruction.id)
        return "activations" if of_forward else "temporaries"
    return "gathered"


def values_of_parameters(program: Program) -> set[int]:
    """The values that are parameters, gathered parameters, or either cast to another format."""
    found = {state.value for state in program.parameters}
    for instruction in program.written:
        same = (
            isinstance(instruction, Communicate)
            or instruction.kind == "view"
            or _casts(instruction)
        )
        if same and reads(instruction) and found.issuperset(reads(instruction)):
            found.update(writes(instruction))
    return found


def _casts(instruction: Instruction) -> bool:
    return isinstance(instruction, Compute) and instruction.op == "aten._to_copy.default"
