"""What each pass makes is checked after it, from tracing to the programs of all ranks; a fault
is one line that names the pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from small_plans import ask_for

from cost_models.cluster import load_cluster
from cost_models.errors import FailedCheck
from planner.graph.checking import checked, checking, is_checking, passes_words
from planner.graph.graph import Graph
from planner.graph.layout import Mesh
from planner.lowering import order
from planner.program.program import Instruction
from planner.search.search import search
from planner.trace import step_graph as tracing
from planner.trace.trace import trace
from planner.workload.ask import build


def test_nothing_is_looked_at_unless_it_is_asked_for() -> None:
    def never() -> Iterator[str]:
        raise AssertionError

    assert not is_checking()
    checked("a pass", never)
    with checking(False) as counts:
        checked("a pass", never)
        assert not is_checking()
    assert counts == {}


def test_the_first_fault_is_raised_under_the_name_of_the_pass() -> None:
    with checking() as counts, pytest.raises(FailedCheck, match=r"^after buckets: a lies$"):
        assert is_checking()
        checked("slices", lambda: ())
        checked("buckets", lambda: ("a lies", "b lies"))
    assert counts == {"slices": 1, "buckets": 1}
    assert (
        passes_words(Counter({"slices": 1200, "buckets": 1}))
        == "checked: slices 1,200, buckets 1; no faults"
    )


#: What is looked at in every plan.
PASSES = {
    "recording",
    "reading",
    "tracing",
    "sub-dims",
    "solving",
    "op",
    "lowering",
    "early starts",
    "prefetching",
    "buckets",
    "late slices",
    "late reports",
    "messages under way",
    "freeing",
    "program",
}


@pytest.mark.parametrize(
    ("hardware", "ask", "more"),
    [
        (
            "dgx-h100",
            ask_for(
                "mlp", 3, batch=8, layers=1, dtype="float32", compute="bfloat16", clip_norm=1.0
            ),
            {"all ranks"},
        ),
        ("cpu", ask_for("mlp", 4, layers=9, hidden=32), {"unrolling"}),
    ],
)
def test_a_search_checks_every_pass(hardware: str, ask: Any, more: set[str]) -> None:
    with checking() as counts:
        search(
            ask,
            load_cluster(hardware, num_devices=ask.num_devices),
            mesh=Mesh(("a",), (ask.num_devices,)),
        )
    assert set(counts) >= PASSES | more, counts


def damage(instructions: Sequence[Instruction]) -> list[Instruction]:
    """Says of the last that it takes less than no time."""
    return [*instructions[:-1], replace(instructions[-1], time=-1.0)]


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [
        ("early starts", order, "started_early"),
        ("prefetching", order, "prefetched"),
        ("buckets", order, "bucketed"),
        ("late slices", order, "continued_late"),
        ("late reports", order, "waited_late"),
        ("freeing", order, "_freed"),
    ],
)
def test_a_pass_that_does_damage_is_named(
    name: str, module: Any, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = getattr(module, function)
    monkeypatch.setattr(
        module,
        function,
        lambda *args, **named: type(whole(*args, **named))(damage(list(whole(*args, **named)))),
    )
    ask = ask_for("mlp", 2, layers=1)
    with checking(), pytest.raises(FailedCheck, match=f"^after {name}: .* takes -1.0 seconds"):
        search(ask, load_cluster("dgx-h100", num_devices=2), mesh=Mesh(("a",), (2,)))


def test_a_graph_that_is_read_wrongly_is_no_reason_to_trace_in_another_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A long stack is traced whole if its blocks cannot be repeated, whatever was raised: not
    for a bug in shardwright."""
    read = tracing.read_graph

    def wrong(*args: Any, **named: Any) -> Graph:
        graph = read(*args, **named)
        return replace(graph, loss=0)

    monkeypatch.setattr(tracing, "read_graph", wrong)
    with (
        checking(),
        pytest.raises(FailedCheck, match=r"^after reading: node .* which nothing needs$"),
    ):
        trace(lambda: build(ask_for("mlp", 1, layers=9)), "mlp")
