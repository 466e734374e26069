"""Joins a product with the bias that is added to it, if nothing is between the two.

Tracing decomposes `addmm` and a convolution's bias, because a partial product must be reduced
before its bias is added. If a lowered product is whole and only that addition reads it, the two
become one op again, which saves a pass over memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from planner.program.program import Compute, Instruction, Ref, reads, writes

__all__ = ["join_biases"]


Shapes = Mapping[int, tuple[int, ...]]


def join_biases(instructions: tuple[Instruction, ...], shapes: Shapes) -> tuple[Instruction, ...]:
    """The instructions with `mm` + `add` as `addmm`, and `convolution` + `add` as a convolution
    with bias. `shapes` are the local shapes of the values."""
    readers: dict[int, list[Instruction]] = defaultdict(list)
    writer: dict[int, Instruction] = {}
    for instruction in instructions:
        for value in reads(instruction):
            readers[value].append(instruction)
        for value in writes(instruction):
            writer[value] = instruction
    joined: dict[str, Compute] = {}
    gone: dict[str, Compute] = {}
    for instruction in instructions:
        if isinstance(instruction, Compute) and instruction.op == "aten.add.Tensor":
            found = _joined(instruction, writer, readers, shapes)
            if found is not None:
                joined[instruction.id], dropped = found
                gone |= {d.id: d for d in dropped}
    return tuple(joined.get(i.id, i) for i in instructions if i.id not in gone)


def _joined(
    add: Compute,
    writer: dict[int, Instruction],
    readers: dict[int, list[Instruction]],
    shapes: Shapes,
) -> tuple[Compute, list[Compute]] | None:
    """The op that joins an addition with its product, and the instructions that it replaces; None
    if the two cannot be joined."""
    if len(add.args) != 2 or add.kwargs or not all(isinstance(a, Ref) for a in add.args):
        return None
    first, second = add.args[0].id, add.args[1].id
    product = writer.get(first)
    if not isinstance(product, Compute) or len(readers[first]) != 1 or product.dtypes != add.dtypes:
        return None
    if product.shapes != add.shapes or first not in add.frees:
        return None
    dropped = [product]
    if product.op == "aten.mm.default":
        if shapes[second] != add.shapes[0][1:]:
            return None
        op, args = "aten.addmm.default", (Ref(second), *product.args)
    elif product.op == "aten.convolution.default" and product.args[2] is None:
        view = writer.get(second)
        if (
            not isinstance(view, Compute)
            or view.op != "shardwright.reshape"
            or len(readers[second]) != 1
        ):
            return None
        if shapes[view.args[0].id] != add.shapes[0][1:2]:
            return None
        dropped.append(view)
        op, args = product.op, (*product.args[:2], view.args[0], *product.args[3:])
    else:
        return None
    inner = {value for d in dropped for value in writes(d)}
    frees = dict.fromkeys(value for i in (*dropped, add) for value in i.frees if value not in inner)
    return replace(product, op=op, args=args, results=add.results, frees=tuple(frees)), dropped
