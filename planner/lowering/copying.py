"""The seconds of the copies around each collective of a program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from cost_models.memory import dtype_bytes
from planner.program.copies import Copies, copies_of, is_uneven
from planner.program.program import Communicate, Instruction
from planner.strategy.costing import Costing

__all__ = ["timed"]


def timed(instructions: Sequence[Instruction], costing: Costing) -> tuple[Instruction, ...]:
    """The instructions of a program, with the seconds of the copies of each collective; their
    frees must be known."""
    return tuple(_timed(i, costing) if isinstance(i, Communicate) else i for i in instructions)


def _timed(instruction: Communicate, costing: Costing) -> Communicate:
    copies = copies_of(
        instruction.kind,
        ranks=math.prod(costing.sizes[axis] for axis in instruction.axes),
        before=instruction.expanded,
        after=[math.prod(shape) for shape in instruction.shapes],
        gather=instruction.gather,
        split=instruction.split,
        uneven=is_uneven(instruction),
        overwritten=set(instruction.frees).issuperset(instruction.sources),
    )
    if copies == Copies():
        return instruction
    itemsize = dtype_bytes(instruction.dtypes[0])
    packing = costing.messages.copying(copies.packed * itemsize, copies.num_packed)
    unpacking = costing.messages.copying(copies.unpacked * itemsize, copies.num_unpacked)
    if instruction.kind == "slice":
        return replace(instruction, time=packing)
    return replace(instruction, packing=packing, unpacking=unpacking)
