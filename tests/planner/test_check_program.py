"""A program that is broken in one way is found out by the one line that names the instruction:
every rule has its mutation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from small_plans import Planned, ask_for, planned

from planner.graph.graph import Group
from planner.graph.graph import Ref as GraphRef
from planner.graph.layout import Mesh
from planner.program.actions import STEP
from planner.program.check_messages import meeting_faults, meetings
from planner.program.check_order import lost_faults, order_faults
from planner.program.check_program import program_faults, ranks_faults
from planner.program.program import Communicate, Compute, Instruction, Program, Ref, Update

Change = Callable[[Program], Program]
Pick = Callable[[Instruction], bool]


@pytest.fixture(scope="module")
def program() -> Program:
    """With buckets, gathers and slices, and a norm that is clipped."""
    return planned(
        ask_for("mlp", clip_norm=1.0), "dp=2,tp=2", ("*=zero1", "*=tensor"), bucket=4096
    ).program


@pytest.fixture(scope="module")
def uneven() -> Planned:
    """Three ranks share eight samples: shards of unlike sizes, and messages that differ by rank."""
    return planned(
        ask_for("mlp", batch=8, hidden=32), "a=3", ("*=zero3",), words={"layers": "batch"}
    )


def find(program: Program, which: Pick) -> int:
    return next(at for at, one in enumerate(program.instructions) if which(one))


def of_kind(kind: str, number: int = 1) -> Pick:
    return lambda one: (
        isinstance(one, Communicate) and one.kind == kind and len(one.sources) >= number
    )


def changing(which: Pick, change: Callable[[Any], Instruction]) -> Change:
    """The first instruction of that sort, changed."""

    def apply(program: Program) -> Program:
        at = find(program, which)
        instructions = list(program.instructions)
        instructions[at] = change(instructions[at])
        return replace(program, bodies={STEP: tuple(instructions)})

    return apply


def put(which: Pick, **changed: Any) -> Change:
    return changing(which, lambda one: replace(one, **changed))


def moved(which: Pick, to: int) -> Change:
    """The first instruction of that sort, moved by so many places."""

    def apply(program: Program) -> Program:
        at = find(program, which)
        instructions = list(program.instructions)
        instructions.insert(at + to, instructions.pop(at))
        return replace(program, bodies={STEP: tuple(instructions)})

    return apply


def is_product(one: Instruction) -> bool:
    return isinstance(one, Compute) and "mm" in one.op and bool(one.frees)


def is_update(one: Instruction) -> bool:
    return isinstance(one, Update)


def is_asynchronous(one: Instruction) -> bool:
    return isinstance(one, Communicate) and one.asynchronous


def without_frees(one: Compute) -> Compute:
    return replace(one, frees=())


def accounted(value: Callable[[Program], int], nbytes: int) -> Change:
    return lambda program: replace(
        program, value_bytes={**program.value_bytes, value(program): nbytes}
    )


def result_of(which: Pick) -> Callable[[Program], int]:
    return lambda program: program.instructions[find(program, which)].results[0]  # type: ignore[union-attr, return-value]


def bucket_of(**changed: Callable[[Communicate], Any]) -> Change:
    """A bucket of gradients, some of it worked out from what it was."""
    return changing(
        of_kind("all_reduce", 2),
        lambda one: replace(one, **{name: value(one) for name, value in changed.items()}),
    )


MUTATIONS: dict[str, tuple[Change, str]] = {
    "a name twice": (
        lambda p: changing(is_update, lambda one: replace(one, id=p.instructions[0].id))(p),
        "2 instructions are called ",
    ),
    "phase": (put(is_product, phase="later"), "is of phase 'later': forward, backward, update"),
    "argument of the graph": (
        changing(is_product, lambda one: replace(one, args=(*one.args, GraphRef(0)))),
        "has arguments other than its operands",
    ),
    "read before it is written": (moved(is_product, -20), "which is written later"),
    "written twice": (
        changing(is_product, lambda one: replace(one, results=(one.operands[0],))),
        "which is written before",
    ),
    "leak": (changing(is_product, without_frees), "which is never freed"),
    "freed before its last use": (
        changing(is_product, lambda one: replace(one, frees=(*one.frees, *one.results))),
        "which are not written, or freed",
    ),
    "freed twice": (
        changing(is_product, lambda one: replace(one, frees=one.frees * 2)),
        "of which some are not there",
    ),
    "seconds": (put(is_product, time=-1e-6), "takes -1e-06 seconds (time)"),
    "endless": (put(is_update, time=float("nan")), "takes nan seconds (time)"),
    "packing": (put(of_kind("all_reduce"), packing=-1.0), "takes -1.0 seconds (packing)"),
    "unpacking": (
        put(of_kind("all_gather"), unpacking=float("inf")),
        "takes inf seconds (unpacking)",
    ),
    "results": (
        put(is_product, dtypes=()),
        "has unlike numbers of results, shapes and dtypes: [0, 1]",
    ),
    "group": (
        changing(is_product, lambda one: replace(one, args=(*one.args, Group((2,))))),
        "is over axes (2,), the mesh is",
    ),
    "kind": (
        put(of_kind("all_reduce"), kind="gossip"),
        "is a gossip, no kind of message (all_reduce, all_gather",
    ),
    "axes": (put(of_kind("all_reduce"), axes=(0, 2)), "is over axes (0, 2), the mesh is dp=2,tp=2"),
    "no axes": (put(of_kind("all_reduce"), axes=()), "is over axes (), the mesh is"),
    "axes turned": (put(of_kind("all_reduce"), axes=(1, 0)), "name each once, in order"),
    "gather": (
        put(of_kind("all_gather"), gather=None),
        "is a all_gather that gathers sub-dim None and splits None",
    ),
    "split": (
        put(of_kind("all_reduce"), split=0),
        "is a all_reduce that gathers sub-dim None and splits 0",
    ),
    "reduce": (put(of_kind("all_reduce"), reduce="mean"), "reduces by 'mean': sum or max"),
    "a source less": (
        bucket_of(sources=lambda one: one.sources[1:]),
        "has unlike numbers of sources, results, shapes",
    ),
    "two dtypes": (
        bucket_of(dtypes=lambda one: ("float32", *one.dtypes[1:])),
        "is one buffer of several dtypes: float32, float64",
    ),
    "dtype": (put(of_kind("all_gather"), dtypes=("float32",)), "as float32, it is float64"),
    "expanded": (put(of_kind("all_gather"), expanded=((3, 7),)), "as (3, 7), its shape is"),
    "reduced shape": (
        changing(
            of_kind("all_reduce"),
            lambda one: replace(one, shapes=tuple((*s, 2) for s in one.shapes)),
        ),
        "whose shape is",
    ),
    "gathered shape": (put(of_kind("all_gather"), shapes=((5,),)), "makes (5,) of value"),
    "no such sub-dim": (put(of_kind("all_gather"), gather=7), "gathers sub-dim 7 of a value of"),
    "pieces of no value": (
        put(of_kind("all_gather"), gather_pieces=((), ())),
        "gathers 1 values and has the pieces of 2",
    ),
    "pieces": (
        put(of_kind("all_gather"), gather_pieces=((1, 1, 1),)),
        "gathers 3 pieces (1, 1, 1), its group has 2 ranks",
    ),
    "sum of pieces": (put(of_kind("slice"), split_pieces=((1, 2),)), "into pieces (1, 2) of 3"),
    "uneven": (
        put(of_kind("slice"), expanded=((5, 5),)),
        "splits 5 over 2 ranks without saying into which pieces",
    ),
    "bytes sent": (
        put(of_kind("all_gather"), nbytes=8),
        "is said to move 8 bytes, its values are ",
    ),
    "asynchronous slice": (put(of_kind("slice"), asynchronous=True), "is an asynchronous slice"),
    "waits for nothing": (
        put(of_kind("all_gather"), after=(3,)),
        "starts after value 3, which no message under way gives",
    ),
    "gradients": (
        changing(is_update, lambda one: replace(one, gradients=one.gradients[1:])),
        "has 7 gradients for 8 parameters",
    ),
    "gradient": (
        changing(
            is_update, lambda one: replace(one, gradients=(one.gradients[1], *one.gradients[1:]))
        ),
        "for parameter 'layers.0.weight', whose piece is float64[",
    ),
    "loss": (lambda p: replace(p, loss=p.parameters[0].value), "the step gives loss as value "),
    "reported": (
        lambda p: replace(p, reported=(("a", p.inputs[0].value),)),
        "the step gives a as value ",
    ),
    "stores": (
        lambda p: replace(p, stores=((p.inputs[0].value, p.loss),)),
        "and becomes value ",
    ),
    "initial bytes": (
        lambda p: replace(p, initial_bytes={"inputs": -1}),
        "-1 bytes of inputs are held before the step",
    ),
    "given bytes": (
        accounted(lambda p: p.inputs[0].value, 7),
        "given, is accounted as 7 bytes, it is float64[",
    ),
    "bytes": (accounted(result_of(is_product), -8), "accounted as -8 bytes"),
    "bytes of a message": (
        accounted(result_of(of_kind("all_gather")), 9),
        "accounted as 9 bytes, it is float64[",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_program_is_found_out_by_one_line(program: Program, name: str) -> None:
    change, words = MUTATIONS[name]
    found = list(program_faults(change(program)))
    assert any(words in fault for fault in found), found
    assert all("\n" not in fault for fault in found)


def test_a_lowered_program_has_no_faults(program: Program, uneven: Planned) -> None:
    assert list(program_faults(program)) == []
    for one in uneven.programs:
        assert list(program_faults(one)) == []
    assert list(ranks_faults(uneven.mesh, dict(enumerate(uneven.programs)))) == []


def test_a_message_waits_for_one_that_is_under_way() -> None:
    """Not for one that was waited for, by a reader or by another message."""
    mesh = Mesh(("a",), (2,))

    def message(name: str, source: int, after: tuple[int, ...] = ()) -> Communicate:
        return Communicate(
            id=name,
            kind="all_reduce",
            axes=(0,),
            sources=(source,),
            results=(source + 10,),
            expanded=((4,),),
            shapes=((4,),),
            dtypes=("float32",),
            phase="update",
            asynchronous=True,
            after=after,
            nbytes=16,
        )

    def reader(value: int) -> Compute:
        return Compute(
            id="reads",
            op="aten.neg.default",
            args=(Ref(value),),
            results=(50,),
            shapes=((4,),),
            dtypes=("float32",),
            kind="elementwise",
            phase="update",
        )

    first, late = message("first", 0), message("late", 2, after=(10,))
    assert list(order_faults([first, message("second", 1), late], mesh)) == []
    assert list(order_faults([first, message("second", 1, after=(10,)), late], mesh)) == [
        "late starts after value 10, which no message under way gives"
    ]
    assert any(
        "starts after value 10" in fault for fault in order_faults([first, reader(10), late], mesh)
    )
    assert any(
        "starts after value 10" in fault
        for fault in order_faults([replace(first, asynchronous=False), late], mesh)
    )


def test_a_pass_neither_loses_values_nor_makes_them_up(program: Program) -> None:
    whole = program.instructions
    at = find(program, is_product)
    (value,) = whole[at].results  # type: ignore[union-attr]
    less = [*whole[:at], *whole[at + 1 :]]
    assert f"values [{value}] are written no more" in list(lost_faults(whole, less))
    assert f"values [{value}] are written by nothing of before" in list(lost_faults(less, whole))
    cut = list(whole)
    cut[at] = replace(cut[at], args=(), kwargs=())  # type: ignore[call-arg]
    assert any(
        "are read before the pass or after it alone" in fault for fault in lost_faults(whole, cut)
    )


# ---------------------------------------------------------------------------------------- all ranks


def broken(
    found: Planned, which: Pick, change: Callable[[Any], Instruction], rank: int = 1
) -> Iterable[str]:
    """The faults of all programs, one of them changed."""
    programs = dict(enumerate(found.programs))
    programs[rank] = changing(which, change)(programs[rank])
    return list(ranks_faults(found.mesh, programs))


@pytest.mark.parametrize(
    ("kind", "changed", "words"),
    [
        ("all_gather", {"id": "other"}, "of rank 1 is other, of rank 0 "),
        ("all_gather", {"axes": ()}, "of rank 1 has axes (), of rank 0 (0,)"),
        ("all_gather", {"dtypes": ("float32",)}, "of rank 1 has dtypes ('float32',), of rank 0"),
        ("all_gather", {"asynchronous": None}, "of rank 1 has asynchronous None, of rank 0"),
        ("all_gather", {"gather": 1}, "of rank 1 has gather 1, of rank 0 0"),
        ("reduce_scatter", {"reduce": "max"}, "of rank 1 has reduce max, of rank 0 sum"),
        ("reduce_scatter", {"after": (1,)}, "of rank 1 has after (1,), of rank 0"),
        (
            "all_gather",
            {"gather_pieces": ((1, 1, 1),)},
            "rank 1 knows of other pieces than rank 0 of its group",
        ),
    ],
)
def test_ranks_meet_in_every_collective(
    uneven: Planned, kind: str, changed: dict[str, Any], words: str
) -> None:
    found = broken(uneven, of_kind(kind), lambda one: replace(one, **changed))
    assert any(words in fault for fault in found), found


def test_ranks_meet_in_the_same_order(uneven: Planned) -> None:
    """Two messages that change places on one rank; one that it does not send."""
    programs = dict(enumerate(uneven.programs))
    messages = [
        at
        for at, one in enumerate(programs[1].instructions)
        if isinstance(one, Communicate) and one.kind != "slice"
    ]
    a, b = messages[:2]
    turned = list(programs[1].instructions)
    turned[a], turned[b] = turned[b], turned[a]
    found = list(
        ranks_faults(
            uneven.mesh, {**programs, 1: replace(programs[1], bodies={STEP: tuple(turned)})}
        )
    )
    assert any(fault.startswith("collective 0 of rank 1 has id ") for fault in found), found
    less = replace(
        programs[1],
        bodies={
            STEP: tuple(i for at, i in enumerate(programs[1].instructions) if at != messages[-1])
        },
    )
    found = list(ranks_faults(uneven.mesh, {**programs, 1: less}))
    assert any(
        f"rank 1 has {len(messages) - 1} collectives, rank 0 {len(messages)}" in fault
        for fault in found
    ), found


def test_pieces_are_those_that_the_group_awaits(uneven: Planned) -> None:
    def shorter(one: Communicate) -> Communicate:
        flat, dim = list(one.expanded[0]), one.gather or 0
        flat[dim] += 1
        return replace(one, expanded=(tuple(flat), *one.expanded[1:]))

    found = broken(uneven, of_kind("all_gather"), shorter)
    assert any(
        "rank 1 sends a piece of " in fault and "its group awaits " in fault for fault in found
    ), found
    found = broken(
        uneven,
        of_kind("reduce_scatter"),
        lambda one: replace(one, expanded=((3, 3), *one.expanded[1:])),
    )
    assert any("rank 1 sends (3, 3), rank 0 of its group " in fault for fault in found), found


def test_some_ranks_can_be_compared_without_the_others(uneven: Planned) -> None:
    programs = uneven.programs
    assert (
        list(meeting_faults(uneven.mesh, {rank: meetings(programs[rank]) for rank in (0, 2)})) == []
    )
