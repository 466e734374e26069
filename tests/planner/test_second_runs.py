"""Ops that run again in backward: what is held between forward and backward, and what runs when."""

from __future__ import annotations

import itertools
import random

import pytest
from small_plans import Planned, ask_for, planned, with_again

from planner.dims.ties import block_of
from planner.graph.graph import Node
from planner.predict.footprint import footprint
from planner.program.program import Communicate, Compute, Program, runs_again
from planner.strategy.strategies import ACROSS, ONCE


def in_layer(node: Node) -> bool:
    return bool(block_of(node.path))


def kept(program: Program) -> int:
    """Bytes of activations between forward and backward."""
    turn = next(
        at
        for at, i in enumerate(program.instructions)
        if isinstance(i, Compute) and i.phase == "backward"
    )
    return footprint(program).after[turn - 1][3]


def test_of_a_layer_that_runs_again_only_its_input_is_held() -> None:
    held = [
        kept(with_again(planned(ask_for("gpt", 1, layers=n), "a=1"), in_layer).program)
        for n in (2, 3, 5)
    ]
    block_input = 8 * 8 * 16 * 8  # batch, sequence, width, bytes of a float64
    assert [b - a for a, b in itertools.pairwise(held)] == [block_input, 2 * block_input]


def test_of_layers_that_run_again_across_nothing_is_held() -> None:
    """Backward begins with a chain of second runs from the first layer to the last."""
    programs = [
        with_again(planned(ask_for("gpt", 1, layers=n), "a=1"), in_layer, ACROSS).program
        for n in (2, 3, 5)
    ]
    assert len({kept(program) for program in programs}) == 1
    sums = [i for i in programs[0].instructions if runs_again(i.id) and i.kind == "elementwise"]
    assert [i.path for i in sums if "add" in i.id] == ["h.0", "h.0", "h.1", "h.1"]


def test_an_op_runs_again_once_in_backward_and_only_if_backward_needs_it() -> None:
    plan = with_again(planned(ask_for("gpt", 1), "a=1"), in_layer)
    again = [i for i in plan.program.instructions if runs_again(i.id)]
    assert {i.phase for i in again} == {"backward"}
    counted = [i.id for i in again if i.kind not in ("view", "slice")]
    of_a_layer = [name for name in counted if ".h.1." in name]
    assert of_a_layer == [
        "backward.h.1.ln_1.native_layer_norm.again#1",
        "backward.h.1.attn.qkv.mm.again#1",
        "backward.h.1.attn.attention.again#1",
        "backward.h.1.attn.proj.mm.again#1",
        "backward.h.1.add.again#1",
        "backward.h.1.ln_2.native_layer_norm.again#1",
        "backward.h.1.mlp.fc.mm.again#1",
        "backward.h.1.mlp.gelu.again#1",
    ]  # not the last product and sum of the layer, which nothing in backward reads
    assert len(counted) == 2 * len(of_a_layer)


@pytest.mark.parametrize(("mesh", "pin"), [("dp=2", "*=zero3"), ("tp=2", "*=tensor")])
def test_a_gather_serves_the_second_run_and_backward(mesh: str, pin: str) -> None:
    """Running again gathers no parameter more often, and sends the activations of a layer once
    more."""
    plain = planned(ask_for("llama", 2), mesh, (pin,))
    again = with_again(plain, in_layer)

    def gathers(program: Program) -> int:
        names = {state.name for state in program.parameters}
        return sum(
            len(i.results)
            for i in program.instructions
            if i.kind == "all_gather" and i.path.partition(" ")[0] in names
        )

    assert gathers(again.program) == gathers(plain.program)
    messages = [
        [
            i
            for i in p.program.instructions
            if isinstance(i, Communicate) and i.phase == "backward" and i.kind != "slice"
        ]
        for p in (plain, again)
    ]
    assert (len(messages[1]) > len(messages[0])) == (pin == "*=tensor")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("model", ["gpt", "lstm", "cnn", "dropped", "normed"])
def test_any_ops_may_run_again(model: str, seed: int) -> None:
    """Any subset of forward: the program is checked after each pass, and run dry."""
    draw = random.Random(seed)
    plain = planned(ask_for(model, 2), "a=2", seed=seed)
    some = {n for n in plain.choices.strategies if draw.random() < 0.5}
    again = with_again(plain, lambda node: node.index in some)
    assert any(runs_again(i.id) for i in again.program.instructions)


def test_an_op_that_runs_once_is_not_read_in_backward() -> None:
    plan = planned(ask_for("gpt", 1), "a=1")
    with pytest.raises(AssertionError):
        with_again(plan, lambda node: node.op == "aten.gelu.default", ONCE)


def test_the_first_runs_are_those_of_a_plan_that_keeps_all() -> None:
    plain = planned(ask_for("llama", 1), "a=1")
    again = with_again(plain, in_layer)

    def first(plan: Planned) -> list[str]:
        return [
            i.id for i in plan.program.instructions if i.phase == "forward" and i.kind != "view"
        ]

    assert first(again) == first(plain)
