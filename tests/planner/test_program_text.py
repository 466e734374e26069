"""The text of a program is complete: nothing that decides what a rank does can change without
changing it."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from small_plans import ask_for, planned

from planner.program.actions import STEP
from planner.program.program import (
    Communicate,
    Compute,
    InputState,
    ParameterState,
    Program,
    Ref,
    Sent,
    Update,
    writes,
)
from planner.program.text import program_text

#: Told by an instruction's id, which begins with its phase and names its layer; `operands` are
#: those of the arguments.
IN_ID = {"path", "phase"}
NOT_TOLD = {*IN_ID, "operands"}

PLANS = [
    ("gpt", "dp=2,tp=2", ("*=zero3",)),
    ("lstm", "tp=4", ("*=tensor",)),
    ("mlp", "dp=3", ("*=data",)),
]


def program_of(model: str, mesh: str, pins: tuple[str, ...], **more: Any) -> Program:
    return planned(ask_for(model, dtype="float32"), mesh, pins, **more).program


@pytest.fixture(scope="module")
def programs() -> list[Program]:
    return [program_of(*plan) for plan in PLANS]


def same(a: Program, b: Program) -> bool:
    """Whether two programs run alike: they are equal but for the seconds and for bytes of values
    that nothing writes."""
    return stripped(a) == stripped(b)


def stripped(program: Program) -> Program:
    quick = [
        replace(
            one,
            time=0.0,
            **({"packing": 0.0, "unpacking": 0.0} if isinstance(one, Communicate) else {}),
        )
        for one in program.instructions
    ]
    told = (
        {v for one in program.instructions for v in writes(one)}
        | {p.value for p in program.parameters}
        | {s.value for s in program.inputs}
    )
    return replace(
        program,
        bodies={STEP: tuple(quick)},
        value_bytes={v: program.value_bytes[v] for v in sorted(told)},
    )


def test_programs_with_one_text_are_one_program(programs: list[Program]) -> None:
    """The same plan gives the same text twice; of programs that differ in a bucket, a pin or a
    seed no two have one text."""
    others = [program_of(*PLANS[0], bucket=512), program_of(*PLANS[0], bucket=4096)]
    others += [program_of("gpt", "a=2,b=2", (), seed=seed) for seed in range(2)]
    every = [*programs, *others, program_of(*PLANS[0])]
    for a, b in combinations(every, 2):
        assert (program_text(a) == program_text(b)) == same(a, b)
    assert program_text(every[0]) == program_text(every[-1])


def another(value: Any) -> Any:
    """Something of the same type that is another value."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return (
            "bfloat16"
            if value == "float32"
            else "float32"
            if value in ("bfloat16", "int64")
            else value + "x"
        )
    if isinstance(value, Ref):
        return Ref(value.id + 1)
    if value is None:
        return 1
    if isinstance(value, tuple):
        return (another(value[0]), *value[1:]) if value else (1,)
    if isinstance(value, frozenset):
        return value ^ {1}
    raise AssertionError(f"no other value than {value!r}")


@given(data=st.data())
def test_every_field_of_an_instruction_is_told(
    programs: list[Program], data: st.DataObject
) -> None:
    """Whichever field of whichever instruction is another, so is the text."""
    program = data.draw(st.sampled_from(programs))
    at = data.draw(st.sampled_from(range(len(program.instructions))))
    one = program.instructions[at]
    name = data.draw(st.sampled_from([f.name for f in fields(one) if f.name not in NOT_TOLD]))
    assume(name != "results" or one.results[0] is not None)  # type: ignore[union-attr]
    changed = replace(one, **{name: _changed(one, name)})
    bodies = {STEP: (*program.instructions[:at], changed, *program.instructions[at + 1 :])}
    assert program_text(replace(program, bodies=bodies)) != program_text(program), name


def _changed(one: Compute | Communicate | Update, name: str) -> Any:
    """Another value for a field; a bucket's pieces by value stay as many as the values are."""
    value = getattr(one, name)
    if name in ("gather_pieces", "split_pieces"):
        return tuple(
            (3, 2, 2, 1) if pieces != (3, 2, 2, 1) else (2, 2, 2, 2)
            for pieces in value or one.sources
        )  # type: ignore[union-attr]
    if name == "kwargs":
        return (*value, ("more", 1))
    if name == "expanded":
        return ((*value[0], 2), *value[1:])
    if name == "shapes":
        return ((*value[0], 2), *value[1:])
    return another(value)


@pytest.mark.parametrize("name", [f.name for f in fields(Program)])
def test_every_field_of_a_program_is_told(programs: list[Program], name: str) -> None:
    program = programs[0]
    if name == "stored_by_all":
        program = replace(program, stores=((1, 2),))
    value = getattr(program, name)
    changed = {
        "mesh": lambda: replace(value, names=("x", "y")),
        "bodies": lambda: {STEP: value[STEP][:-1]},
        "actions": lambda: (replace(value[0], microbatch=1),),
        "carried": lambda: frozenset({program.loss}),
        "stored_by_all": lambda: frozenset({1}),
        "parameters": lambda: value[:-1],
        "inputs": lambda: value[:-1],
        "value_bytes": lambda: {**value, program.parameters[0].value: 7},
        "initial_bytes": lambda: {**value, "inputs": 7},
        "stores": lambda: (*value, (1, 2)),
        "reported": lambda: (*value, ("part", 1)),
        "sent": lambda: (Sent(crossing=3, value=1, subshape=(), layout=(), dtype="float32"),),
        "squares": lambda: (1, 2),
    }.get(name, lambda: another(value))()
    assert program_text(replace(program, **{name: changed})) != program_text(program)


@pytest.mark.parametrize("name", [f.name for f in fields(ParameterState)])
def test_every_field_of_a_parameter_is_told(programs: list[Program], name: str) -> None:
    program = programs[0]
    first = program.parameters[0]
    value = getattr(first, name)
    changed = {
        "value": 1,
        "shard": 1,
        "subshape": ((2, 16), (16,)),
        "stored": (1, -1),
        "updated": (1, -1),
    }.get(name) or another(value)
    assert program_text(
        replace(program, parameters=(replace(first, **{name: changed}), *program.parameters[1:]))
    ) != program_text(program)


@pytest.mark.parametrize("name", [f.name for f in fields(InputState)])
def test_every_field_of_an_input_is_told(programs: list[Program], name: str) -> None:
    program = programs[0]
    first = program.inputs[0]
    value = getattr(first, name)
    changed = {
        "value": 1,
        "subshape": ((2, 4), (8,)),
        "layout": (1, -1),
        "pieces": (1, 2),
    }.get(name) or another(value)
    assert program_text(
        replace(program, inputs=(replace(first, **{name: changed}), *program.inputs[1:]))
    ) != program_text(program)


def test_an_id_tells_the_phase_and_the_layer(programs: list[Program]) -> None:
    for program in programs:
        for one in program.instructions:
            assert one.id.startswith(f"{one.phase}.") or isinstance(one, Update)
            if isinstance(one, Compute):
                assert one.id.startswith(f"{one.phase}.{one.path or 'top'}.")


def test_arguments_are_as_python_writes_them(programs: list[Program]) -> None:
    """None is told by its place in this process's memory."""
    assert not any(" at 0x" in program_text(program) for program in programs)


def test_columns_and_numbers(programs: list[Program]) -> None:
    """The loss of a step of three devices, by hand: 8 samples in pieces of 3, 3 and 2, so rank 0
    has the larger ones."""
    lines = program_text(programs[-1]).splitlines()
    assert (
        lines[0]
        == "mesh      dp=3: 3 devices, messages over shared memory; the program of rank 0; "
        "the others' pieces have other sizes or places"
    )
    assert any(
        line.split()[1:] == ["input", "0", "float32[3x16]", "[8,", "16]", "S(0)"] for line in lines
    )
    product = next(line.split() for line in lines if "aten.addmm" in line)
    assert product[1] == str(3 * 32 * 4)
