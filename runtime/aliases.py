"""Which values an instruction may overwrite: those that share memory with no other live value."""

from __future__ import annotations

from collections.abc import Sequence

from planner.program.operators import may_alias
from planner.program.program import (
    Communicate,
    Compute,
    Instruction,
    Program,
    in_place,
    writes,
)

__all__ = ["reusable_sources"]


def reusable_sources(program: Program, body: str) -> dict[str, list[bool]]:
    """For each `Communicate` of a body, by id, whether it may overwrite each of its sources."""
    instructions = program.bodies[body]
    families = _families(instructions)
    written, freed = _lifetimes(program, instructions)
    kept = program.trained | {state.value for state in program.inputs}
    kept |= {value for _, value in (*program.stores, *program.told)}
    kept |= program.stashed | {one.value for one in program.sent}
    out: dict[str, list[bool]] = {}
    for at, instruction in enumerate(instructions):
        if isinstance(instruction, Communicate):
            out[instruction.id] = [
                source in instruction.frees
                and all(
                    other not in kept and (written[other] >= at or freed.get(other, at + 1) <= at)
                    for other in families[source]
                )
                for source in instruction.sources
            ]
    return out


def _families(instructions: Sequence[Instruction]) -> dict[int, set[int]]:
    """For each value, all values that may share its memory."""
    families: dict[int, set[int]] = {}
    for instruction in instructions:
        if isinstance(instruction, Compute):
            results = [i for i in instruction.results if i is not None]
            sources = list(instruction.operands)
            shared = may_alias(instruction.op) and in_place(instruction) is None
        elif isinstance(instruction, Communicate):
            results, sources = list(instruction.results), list(instruction.sources)
            shared = True
        else:
            continue
        for group in [[*results, *sources]] if shared else [[i] for i in (*results, *sources)]:
            joined = set(group).union(*(families.get(i, ()) for i in group))
            families.update(dict.fromkeys(joined, joined))
    return families


def _lifetimes(
    program: Program, instructions: Sequence[Instruction]
) -> tuple[dict[int, int], dict[int, int]]:
    """Where each value is written (-1: before the action), and where it is freed."""
    written: dict[int, int] = {state.value: -1 for state in program.inputs}
    made = {value for one in instructions if in_place(one) is None for value in writes(one)}
    written |= dict.fromkeys(program.carried - made, -1)
    for state in program.parameters:
        written[state.value] = written[state.shard] = -1
    freed: dict[int, int] = {}
    for at, instruction in enumerate(instructions):
        freed.update(dict.fromkeys(instruction.frees, at))
        for result in getattr(instruction, "results", ()):
            if result is not None:
                written.setdefault(result, at)
    return written, freed
