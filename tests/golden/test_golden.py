"""The plans of the golden cases are the ones that are kept, in all that their records hold: see
update.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from golden_cases import CASES, planned
from golden_record import path_of, record_of
from golden_words import differences

from planner.program.actions import STEP
from planner.program.program import Communicate, Compute, Program
from planner.search.search import Found


@cache
def found(name: str) -> Found:
    return planned(CASES[name])


def kept(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path_of(name).read_text())
    return record


@pytest.mark.parametrize("name", CASES)
def test_plan_is_the_golden_one(name: str) -> None:
    said = differences(kept(name), record_of(found(name)))
    assert not said, "\n".join(
        [f"{name} has changed: if that is meant, python tests/golden/update.py", *said]
    )


def test_no_file_is_left_of_a_case_that_is_gone() -> None:
    assert sorted(path.stem for path in path_of("mlp").parent.glob("*.json")) == sorted(CASES)


#: What the file of a case has in it if the case covers what it is there for.
COVERS = {
    "gpt-nodes": "16 devices, messages over nccl",
    "mlp-three": "float32[257x1024]",
    "mlp-tight": '"made_to_fit": true',
    "gpt-zero3": "update reduce_scatter of",
    "gpt-two-axes": "all_reduce[tp, sum",
    "bert-tensor": "reduce_scatter[tp, sum",
    "gpt-odd-vocabulary": "gather 128+127+127+127",
    "lstm-hidden": "group=@tp",
    "moe": "experts.gate",
    "dropout-clipped": "shardwright.clipped(",
    "llama-mixed": "parameters float32; products bfloat16",
    "llama-compiled": "shardwright.fused(",
    "hf-gpt2": "model.transformer.h.0.attn.c_attn",
}


@pytest.mark.parametrize("name", COVERS)
def test_a_case_covers_what_it_is_there_for(name: str) -> None:
    """A plan that changes for the better may leave its case without what the case was made for:
    give it other sizes then."""
    assert COVERS[name] in path_of(name).read_text()


# ------------------------------------------------------------------------------------ that it bites


def slower(program: Program) -> Program:
    """Compute takes 1.3 times the seconds."""
    instructions = [
        replace(one, time=one.time * 1.3) if isinstance(one, Compute) else one
        for one in program.instructions
    ]
    return replace(program, bodies={STEP: tuple(instructions)})


def larger(program: Program) -> Program:
    """Values are 1.3 times as large."""
    return replace(
        program,
        value_bytes={value: nbytes * 13 // 10 for value, nbytes in program.value_bytes.items()},
    )


def freed_later(program: Program) -> Program:
    """One value is freed an instruction later."""
    instructions = list(program.instructions)
    at = next(n for n, one in enumerate(instructions) if one.frees)
    value = instructions[at].frees[0]
    instructions[at] = replace(instructions[at], frees=instructions[at].frees[1:])
    instructions[at + 1] = replace(instructions[at + 1], frees=(value, *instructions[at + 1].frees))
    return replace(program, bodies={STEP: tuple(instructions)})


def one_bucket_more(program: Program) -> Program:
    """The first value of the largest message is sent on its own."""
    messages = [one for one in program.instructions if isinstance(one, Communicate)]
    whole = max(messages, key=lambda one: len(one.sources))
    assert len(whole.sources) > 1
    fields = ("sources", "results", "expanded", "shapes", "dtypes", "gather_pieces", "split_pieces")
    first = replace(
        whole, id=f"{whole.id}.first", **{name: getattr(whole, name)[:1] for name in fields}
    )
    rest = replace(whole, **{name: getattr(whole, name)[1:] for name in fields})
    at = program.instructions.index(whole)
    return replace(
        program,
        bodies={STEP: (*program.instructions[:at], first, rest, *program.instructions[at + 1 :])},
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (slower, "gemm take 1.30 times the seconds"),
        (larger, "instructions have other bytes"),
        (freed_later, "2 instructions free other values"),
        (one_bucket_more, "all_reduce 2 -> 3"),
    ],
)
def test_a_change_of_the_program_is_told(change: Callable[[Program], Program], says: str) -> None:
    plan = found("mlp-three")
    said = differences(record_of(plan), record_of(replace(plan, program=change(plan.program))))
    assert any(says in line for line in said), said


@pytest.mark.parametrize(
    ("key", "change", "says"),
    [
        ("bound_s", lambda bound: bound * 0.99, "bound"),
        ("step_time_s", lambda step: step * 1.001, "step"),
        (
            "memory_bytes",
            lambda held: {**held, "activations": held["activations"] + 512},
            "memory activations",
        ),
        ("mesh", lambda mesh: {"tp": 3}, "mesh"),
        (
            "options",
            lambda options: ["split:1", *options[1:]],
            "classes of ops have another choice",
        ),
        (
            "baselines",
            lambda rows: [{**rows[0], "step_time_s": 1.0}, *rows[1:]],
            "baseline data parallel: step",
        ),
    ],
)
def test_a_change_of_a_figure_is_told(key: str, change: Callable[[Any], Any], says: str) -> None:
    record = record_of(found("mlp-three"))
    said = differences(record, {**record, key: change(record[key])})
    assert len(said) == 1
    assert says in said[0]


def test_the_last_bit_of_another_processor_is_no_difference() -> None:
    plan = found("mlp-three")
    instructions = tuple(
        replace(one, time=one.time * (1 + 1e-9)) for one in plan.program.instructions
    )
    assert not differences(
        record_of(plan),
        record_of(replace(plan, program=replace(plan.program, bodies={STEP: instructions}))),
    )
