"""The bodies of a step in microbatches: what runs in the first, in each, and once at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import small_plans
from small_plans import ask_for, planned

from planner.graph.graph import Node
from planner.graph.layout import Mesh
from planner.program.actions import Action, parse_actions
from planner.program.check_program import program_faults
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
from planner.strategy.pinned import pins_for
from planner.strategy.pins import Pin
from planner.strategy.strategies import Option, options_of
from planner.strategy.traced_model import Model, Pins

#: name -> (model, ranks, mesh, pins).
PLANS = {
    "kept whole": ("mlp", 2, "dp=2", ("*=zero1",)),
    "gathered in every pass": ("gpt", 4, "dp=2,tp=2", ("*=zero3", "*=tensor")),
    "with totals": ("t5", 2, "dp=2", ("*=ddp",)),
}


@cache
def program_of(name: str, microbatches: int) -> Program:
    model, ranks, mesh, pins = PLANS[name]
    ask = ask_for(model, ranks, batch=12, microbatches=microbatches)
    return planned(ask, mesh, pins).program


@pytest.fixture(scope="module", params=[(name, m) for name in PLANS for m in (2, 3)], ids=str)
def program(request: pytest.FixtureRequest) -> Program:
    return program_of(*request.param)


def bodies(program: Program) -> dict[str, tuple[Instruction, ...]]:
    """The bodies of the microbatches, without those of totals."""
    return {name: body for name, body in program.bodies.items() if "TOTALS" not in name}


def sums(body: tuple[Instruction, ...]) -> dict[int, Instruction]:
    """The instructions that write sums over microbatches, by sum."""
    return {v: one for one in body if ".accumulate#" in one.id for v in writes(one)}


def gathered(body: tuple[Instruction, ...]) -> set[int]:
    """The results of gathers."""
    gathers = (one for one in body if isinstance(one, Communicate) and one.kind == "all_gather")
    return {value for one in gathers for value in one.results}


def test_the_first_microbatch_makes_the_sums_and_the_others_add_to_them(program: Program) -> None:
    m = program.microbatches
    main = " ".join(["0FIRST0", *(f"0MIDDLE{j}" for j in range(1, m - 1)), f"0LAST{m - 1}"])
    assert program.actions[-m:] == parse_actions(main)
    first, *others = bodies(program).values()
    assert sums(first) and all(in_place(one) is None for one in sums(first).values())
    for body in others:
        assert sums(body).keys() == sums(first).keys()
        assert all(in_place(one) == value for value, one in sums(body).items())


def test_totals_are_complete_before_the_first_microbatch() -> None:
    program = program_of("with totals", 3)
    assert program.actions[:3] == parse_actions("0TOTALS_FIRST0 0TOTALS1 0TOTALS2")
    (total,) = sums(program.bodies["TOTALS"])
    assert in_place(sums(program.bodies["TOTALS"])[total]) == total
    assert total not in {v for body in bodies(program).values() for v in sums(body)}


def test_an_op_has_one_id_in_all_bodies_and_the_last_one_updates(program: Program) -> None:
    first, *others = bodies(program).values()
    ops = {one.id for one in first if isinstance(one, Compute)}
    assert all(ops <= {one.id for one in body} for body in others)
    assert [
        name for name, body in program.bodies.items() if any(isinstance(i, Update) for i in body)
    ] == ["LAST"]


def test_what_is_kept_whole_is_gathered_by_the_first_microbatch_alone() -> None:
    first, *others = map(gathered, bodies(program_of("kept whole", 3)).values())
    assert first and others == [set(), set()]
    program = program_of("gathered in every pass", 3)
    first, *others = map(gathered, bodies(program).values())
    assert first and others == [first, first]
    assert first.isdisjoint(program.carried)


def test_a_sum_is_reduced_beside_the_rest_of_the_last_microbatch() -> None:
    ask = ask_for("mlp", 2, batch=12, microbatches=3)
    last = planned(ask, "dp=2", ("*=ddp",), bucket=1).program.bodies["LAST"]
    ids = [one.id for one in last]
    adds = {v: ids.index(one.id) for v, one in sums(last).items()}
    sent = {
        v: at for at, one in enumerate(last) if isinstance(one, Communicate) for v in one.sources
    }
    products = [at for at, one in enumerate(last) if one.kind == "gemm"]
    assert min(at for v, at in sent.items() if v in adds) < max(products)


def test_a_term_that_is_reduced_first_is_added_when_it_has_had_time_to_arrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the start of two more reductions or at the end of the microbatch, and before the
    third: neither at once, which would wait for the links, nor all of them at the end."""
    monkeypatch.setattr(small_plans, "pins_for", in_pieces)
    ask = ask_for("mlp", 2, batch=12, microbatches=3, layers=6)
    middle = planned(ask, "dp=2", ("*=zero3",), bucket=1).program.bodies["MIDDLE"]
    started = [at for at, one in enumerate(middle) if is_reduction(one)]
    sent = {v: at for at in started for v in writes(middle[at])}
    delays = []
    for at, one in enumerate(middle):
        if in_place(one) is not None and one.phase == "update":
            term = _origin(middle, reads(one)[1])
            delays.append(sum(sent[term] < start < at for start in started))
    assert len(delays) > 8
    assert set(delays[:-4]) <= {1, 2} and middle[-1].kind != "reduce_scatter"


def is_reduction(one: Instruction) -> bool:
    return isinstance(one, Communicate) and one.kind in ("reduce_scatter", "all_reduce")


def _origin(body: tuple[Instruction, ...], value: int) -> int:
    """The value that a value is a view or a slice of."""
    writer = next(one for one in body if value in writes(one))
    return value if is_reduction(writer) else _origin(body, reads(writer)[0])


def in_pieces(model: Model, mesh: Mesh, pins: tuple[Pin, ...]) -> Pins:
    """Those pins, with sums over microbatches in pieces wherever they can be."""
    given = pins_for(model, mesh, pins)

    def op(node: Node, axis: int, option: Option) -> bool:
        sizes = model.dims.ops[node.index].sizes

        def splits(one: Option) -> bool:
            return one.kind == "split" and sizes[one.number] >= mesh.sizes[axis]

        able = any(map(splits, options_of(model.dims.ops[node.index])))
        summed = node.index in model.summed and able
        return splits(option) if summed else given.op(node, axis, option)

    return replace(given, op=op)


# -------------------------------------------------------------------------------------------- faults


def changed(
    program: Program, name: str, change: Callable[[tuple[Instruction, ...]], list[Instruction]]
) -> Program:
    """The program with the instructions of a body changed."""
    return replace(program, bodies={**program.bodies, name: tuple(change(program.bodies[name]))})


def _made_anew(body: tuple[Instruction, ...]) -> list[Instruction]:
    """The first sum is made of the microbatch's term alone."""
    at = next(at for at, one in enumerate(body) if in_place(one) is not None)
    one = body[at]
    assert isinstance(one, Compute)
    return [*body[:at], replace(one, args=(Ref(one.operands[1]),)), *body[at + 1 :]]


def _without_frees(body: tuple[Instruction, ...]) -> list[Instruction]:
    kept = set(sums(body))
    return [replace(one, frees=tuple(v for v in one.frees if v not in kept)) for one in body]


def _with_a_leak(body: tuple[Instruction, ...]) -> list[Instruction]:
    at = next(at for at, one in enumerate(body) if one.frees)
    return [*body[:at], replace(body[at], frees=body[at].frees[1:]), *body[at + 1 :]]


def _without_gathers(body: tuple[Instruction, ...]) -> list[Instruction]:
    return [one for one in body if not (isinstance(one, Communicate) and one.kind == "all_gather")]


FAULTS: dict[str, tuple[Callable[[Program], Program], str]] = {
    "a sum that is not carried": (lambda p: replace(p, carried=frozenset()), "not carried"),
    "a sum that is begun again": (lambda p: changed(p, "MIDDLE", _made_anew), "written before"),
    "a sum that is never freed": (lambda p: changed(p, "LAST", _without_frees), "never freed"),
    "a value of a microbatch that stays": (
        lambda p: changed(p, "MIDDLE", _with_a_leak),
        "not carried",
    ),
    "nothing is gathered": (lambda p: changed(p, "FIRST", _without_gathers), "not written"),
    "the last one comes first": (
        lambda p: replace(p, actions=(p.actions[-1], *p.actions[:-1])),
        "not written",
    ),
    "a body of no instructions": (
        lambda p: replace(p, actions=(*p.actions, Action("MORE", 3))),
        "MORE, which have no instructions",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_goes_wrong_between_actions_is_found(name: str) -> None:
    change, words = FAULTS[name]
    program = program_of("kept whole", 3)
    assert list(program_faults(program)) == []
    assert any(words in fault for fault in program_faults(change(program)))
