"""Loss, every gradient and three steps of plans that recompute, on real gloo ranks against one
process, in float64.

`make test` runs a sample; the long matrix is every family under every way of recomputing and of
splitting.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from matrix import TOLERANCE, Case, errors_of
from small_plans import Planned, ask_for, planned, with_again

from planner.program.program import runs_again
from planner.strategy.strategies import ACROSS

#: name -> pins on what runs again.
WAYS = {
    "none": ("*=keep",),
    "selective": ("*=selective",),
    "full": ("*=recompute",),
    "by pattern": ("h.*.mlp=recompute", "h.0=recompute"),
    "across": ("*=keep",),
}
#: name -> mesh and pins, on one and on two ranks.
KINDS = {
    1: {"one": ("a=1", ())},
    2: {
        "ddp": ("dp=2", ("*=ddp",)),
        "zero1": ("dp=2", ("*=zero1",)),
        "zero3": ("dp=2", ("*=zero3",)),
        "tensor": ("tp=2", ("*=tensor",)),
    },
}
FAMILIES = ("gpt", "llama", "bert", "lstm", "cnn", "t5", "vit", "dropped", "unfused", "moe")

#: Family, way, kind: each at least once, and what may interfere.
SAMPLE = (
    ("gpt", "by pattern", "zero3"),
    ("llama", "full", "tensor"),
    ("bert", "full", "zero1"),
    ("lstm", "full", "ddp"),
    ("cnn", "selective", "tensor"),
    ("t5", "full", "tensor"),
    ("dropped", "full", "ddp"),
    ("unfused", "selective", "zero3"),
    ("llama", "across", "zero3"),
    ("bert", "across", "tensor"),
    ("lstm", "across", "zero1"),
)


def plan_of(name: str, way: str, kind: str, ranks: int) -> Planned:
    mesh, pins = KINDS[ranks][kind]
    plan = planned(ask_for(name, ranks), mesh, (*pins, *WAYS[way]))
    if way != "across":
        return plan
    return with_again(plan, lambda node: bool(plan.model.blocks[node.index]), ACROSS)


def errors_above(plans: dict[str, Planned], ranks: int) -> dict[str, float | str]:
    """The errors above the tolerance; the largest is printed."""
    found = errors_of({name: Case(p.ask, p.programs) for name, p in plans.items()}, ranks)
    print(max(found.items(), key=lambda item: float(item[1])))
    return {name: error for name, error in found.items() if not error < TOLERANCE}  # type: ignore[operator]


def test_a_plan_that_recomputes_trains_as_one_process_does() -> None:
    plans = {f"{name}: {way}, {kind}": plan_of(name, way, kind, 2) for name, way, kind in SAMPLE}
    idle = [
        name
        for name, plan in plans.items()
        if not any(runs_again(i.id) for i in plan.program.instructions)
    ]
    assert idle == []
    assert errors_above(plans, 2) == {}


def matrix(ranks: int) -> Iterator[tuple[str, Planned]]:
    for name in FAMILIES:
        for way in WAYS:
            if way == "by pattern" and name not in ("gpt", "unfused"):
                continue
            for kind in KINDS[ranks]:
                yield f"{name}: {way}, {kind}", plan_of(name, way, kind, ranks)


@pytest.mark.slow_matrix
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_family_in_every_way(ranks: int) -> None:
    assert errors_above(dict(matrix(ranks)), ranks) == {}
