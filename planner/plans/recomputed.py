"""What a plan computes again in backward: by layer, what it costs, and what is not held for it.

Program, model, choices -> the part of a summary that says so. Costs are the seconds of ops that run
a second time, and of messages that only they read. Casts of parameters do not count: a plan says
elsewhere that they run again (`Choices.recast`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from planner.dims.ties import block_of, pattern_of
from planner.plans.kept import held_for_backward
from planner.predict.categories import values_of_parameters
from planner.program.program import (
    Communicate,
    Compute,
    Instruction,
    Program,
    reads,
    runs_again,
    writes,
)
from planner.strategy.choices import Choices
from planner.strategy.costing import Costing
from planner.strategy.strategies import KEPT
from planner.strategy.traced_model import Model

__all__ = ["recomputed", "second_runs"]


def recomputed(
    program: Program, model: Model, choices: Choices, costing: Costing
) -> dict[str, Any]:
    """The layers whose ops run again, with their ops by name, the seconds of a step, and the bytes
    that are held less from forward to backward; empty if nothing runs again."""
    again = {i.id for i in second_runs(program)}
    ops = next((some for b in program.bodies.values() if (some := _ops(b, again))), [])
    if not ops:
        return {}
    spent: dict[str, float] = defaultdict(float)
    messages = 0.0
    for instruction in second_runs(program):
        if isinstance(instruction, Communicate):
            messages += instruction.time
        else:
            spent[_group(instruction.path)] += instruction.time
    less = _held_less(model, choices, costing)
    groups: dict[str, list[Compute]] = defaultdict(list)
    for op in ops:
        groups[_group(op.path)].append(op)
    return {
        "time_s": sum(spent.values()) + messages,
        "messages_time_s": messages,
        "held_less_bytes": sum(less.values()),
        "groups": [
            {
                "group": group,
                "count": len({block_of(op.path) for op in some}),
                "ops": _counts(some),
                "time_s": spent[group],
                "held_less_bytes": less[group],
            }
            for group, some in groups.items()
        ],
    }


def _ops(body: tuple[Instruction, ...], again: set[str]) -> list[Compute]:
    """The ops of a body that run again; views are left out."""
    return [i for i in body if isinstance(i, Compute) and i.kind != "view" and i.id in again]


def second_runs(program: Program) -> Iterator[Instruction]:
    """The instructions of a step that are there only because ops run again, as often as they run:
    these ops, and the messages that only they read."""
    casts = values_of_parameters(program)
    alone = {i.id for body in program.bodies.values() for i in _of_second_runs(body, casts)}
    return (i for i in program.instructions if i.id in alone)


def _of_second_runs(body: tuple[Instruction, ...], casts: set[int]) -> Iterator[Instruction]:
    """Of one body: an instruction counts if it runs again and makes none of `casts`, or is a
    message of backward whose results only such instructions read, directly or through views."""
    read_otherwise: set[int] = set()
    for instruction in reversed(body):
        alone = read_otherwise.isdisjoint(writes(instruction))
        message = isinstance(instruction, Communicate) and instruction.phase == "backward"
        again = runs_again(instruction.id) and casts.isdisjoint(writes(instruction))
        if again or (message and alone):
            yield instruction
        elif instruction.kind != "view" or not alone:
            read_otherwise.update(reads(instruction))


def _held_less(model: Model, choices: Choices, costing: Costing) -> dict[str, int]:
    """Bytes that are held for backward if all is kept, less those that are under the choices."""
    kept = {n: replace(s, mode=KEPT) for n, s in choices.strategies.items()}
    all_, now = (
        held_for_backward(model, one, costing)
        for one in (replace(choices, strategies=kept), choices)
    )
    out: dict[str, int] = defaultdict(int)
    for index in {*all_, *now}:
        group = _group(model.graph.nodes[index].path)
        out[group] += all_.get(index, 0) - now.get(index, 0)
    return out


def _group(path: str) -> str:
    """Like layers together; a module outside of layers by itself."""
    return pattern_of(block_of(path) or path)


def _counts(ops: list[Compute]) -> dict[str, int]:
    """How often an op runs again in a layer, by its name."""
    layers = len({block_of(op.path) for op in ops})
    found = Counter(op.op.split(".")[1] for op in ops)
    return {name: -(-count // layers) for name, count in found.most_common()}
