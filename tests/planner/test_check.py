"""A program that reads what is not there, or holds something of the graph, is found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from small_plans import ask_for, planned

from planner.graph.graph import Ref as GraphRef
from planner.graph.graph import Serial
from planner.program.actions import STEP
from planner.program.check import faults
from planner.program.program import Compute, Program, Ref


@pytest.fixture(scope="module")
def program() -> Program:
    return planned(ask_for("mlp"), "dp=2,tp=2", ("*=zero1", "*=tensor")).program


def changed(program: Program, change: Callable[[Compute], Compute]) -> Program:
    """The program with its last op that reads something changed."""
    at = max(
        i for i, one in enumerate(program.instructions) if isinstance(one, Compute) and one.operands
    )
    instructions = list(program.instructions)
    instructions[at] = change(instructions[at])  # type: ignore[arg-type]
    return replace(program, bodies={STEP: tuple(instructions)})


def test_a_lowered_program_has_no_faults(program: Program) -> None:
    assert faults(program) == ()


@pytest.mark.parametrize(
    "argument",
    [
        GraphRef(0),
        (GraphRef(0),),
        [GraphRef(0)],
        {"x": GraphRef(0)},
        slice(0, GraphRef(0)),
        Serial(1),
        [Ref(0)],
    ],
)
def test_what_no_operand_tells_of_is_a_fault(program: Program, argument: Any) -> None:
    """Wherever it stands, by keyword too: `runtime` would run it, and nothing would keep the
    value or bring it to its layout."""
    for change in (
        lambda op: replace(op, args=(*op.args, argument)),
        lambda op: replace(op, kwargs=(("sorter", argument),)),
    ):
        (fault,) = faults(changed(program, change))[:1]
        assert "other than its operands" in fault


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda op: replace(op, args=(*op.args, Ref(10**6))), "not written"),
        (lambda op: replace(op, kwargs=(("out", Ref(10**6)),)), "not written"),
        (lambda op: replace(op, results=op.operands[:1]), "written before"),
        (lambda op: replace(op, frees=(*op.frees, 10**6)), "not there"),
        (lambda op: replace(op, frees=op.frees * 2), "not there"),
    ],
)
def test_values_are_written_before_they_are_read_and_freed_once(
    program: Program, change: Callable[[Compute], Compute], words: str
) -> None:
    assert any(words in fault for fault in faults(changed(program, change)))


def test_what_outlives_the_step_is_not_freed(program: Program) -> None:
    last = program.instructions[-1]
    freed = replace(
        program,
        bodies={
            STEP: (*program.instructions[:-1], replace(last, frees=(*last.frees, program.loss)))
        },
    )
    assert any("ends without" in fault for fault in faults(freed))


def test_a_parameter_that_is_read_after_its_update_is_a_fault() -> None:
    """By itself, by a view of it, or because the step gives it: the update writes to its memory."""
    program = planned(ask_for("mlp"), "dp=2,tp=2", ("*=ddp", "*=tensor")).program
    weight = program.parameters[0].value
    op = next(
        one for one in program.instructions if isinstance(one, Compute) and weight in one.operands
    )
    new = max(program.value_bytes) + 1
    late = replace(op, args=(Ref(weight),), results=(new,), frees=())
    after = replace(program, bodies={STEP: (*program.instructions, late)})
    assert any("after their update" in fault for fault in faults(after))
    view, reader = (
        replace(late, kind="view"),
        replace(late, args=(Ref(new),), results=(new + 1,), kind="elementwise"),
    )
    through = replace(program, bodies={STEP: (view, *program.instructions, reader)})
    assert any("after their update" in fault for fault in faults(through))
    assert any(
        "which the update writes to" in fault
        for fault in faults(replace(program, reported=(("weight", weight),)))
    )
