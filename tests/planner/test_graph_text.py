"""The text of a graph: all that it has, whole or a stack by its first block."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_plans import ask_for, traced
from torch import nn
from trace_models import workload

from planner.graph.graph import Graph, Ref
from planner.report.graph_fold import Repeat, repeats
from planner.report.graph_text import graph_text
from planner.trace.trace import trace
from planner.workload.workload import Workload


def graph_of(name: str, **sizes: Any) -> Graph:
    return traced(ask_for(name, **sizes))[0].graph


def nodes_in(text: str) -> int:
    return sum(" -> " in line for line in text.splitlines())


def test_every_node_and_value_is_printed_once() -> None:
    graph = graph_of("mlp", layers=1)
    lines = graph_text(graph, whole=True).splitlines()
    assert lines[0] == "step      forward 11 nodes, backward 19 nodes, 36 values"
    assert lines[1].startswith("trained   4 parameters, ")
    assert lines[2] == f"loss      %{graph.loss}"
    made = [
        int(value)
        for line in lines
        if " -> " in line
        for value in re.findall(r"%(\d+)", line.rpartition(" -> ")[2])
    ]
    given = [int(line[1:].split()[0]) for line in lines if line.startswith("%")]
    assert given + made == [value.id for value in graph.values]
    first = graph.parameters[0]
    row = next(line for line in lines if line.startswith("%0 "))
    assert row.split() == [
        "%0",
        "parameter",
        "layers.0.weight",
        "float64[32x16]",
        "gradient",
        f"%{first.gradient}",
    ]
    product = next(line for line in lines if "aten.mm.default" in line)
    assert product.split(None, 3)[1:] == [
        "forward",
        "layers.0",
        "aten.mm.default(%4, %6) -> %7 float64[8x32]",
    ]


def changes(graph: Graph) -> list[Graph]:
    """The graph with one thing of it changed, for each thing that a node or the whole has."""
    node = next(node for node in graph.nodes if node.op == "aten.mm.default")

    def of(**changed: Any) -> Graph:
        return replace(
            graph, nodes=tuple(replace(n, **changed) if n is node else n for n in graph.nodes)
        )

    weight = replace(graph.values[0], name="other")
    return [
        of(op="aten.bmm.default"),
        of(args=node.args[::-1]),
        of(kwargs=(("x", 1),)),
        of(results=(None,)),
        of(result_shapes=((1,),)),
        of(result_dtypes=("float16",)),
        of(phase="backward"),
        of(path="elsewhere"),
        replace(graph, loss=0),
        replace(graph, reported=(("a", 1),)),
        replace(graph, updates=((4, 7),)),
        replace(graph, values=(weight, *graph.values[1:])),
        replace(
            graph, parameters=(replace(graph.parameters[0], gradient=1), *graph.parameters[1:])
        ),
    ]


def test_graphs_with_the_same_text_are_the_same() -> None:
    graph = graph_of("mlp", layers=1)
    texts = [graph_text(one, whole=True) for one in (graph, *changes(graph))]
    assert len({*texts}) == len(texts)


def test_of_a_stack_the_first_block_is_shown() -> None:
    """Its forward, and its backward in the reverse order; the text does not grow with depth."""
    four, six = graph_of("gpt", layers=4), graph_of("gpt", layers=6)
    for graph, count in ((four, 4), (six, 6)):
        forward, backward = repeats(graph)
        assert (forward.count, backward.count) == (count, count)
        assert graph.nodes[forward.start].path == "h.0.ln_1" and graph.nodes[
            backward.start
        ].path.startswith(f"h.{count - 1}.")
        paths = {graph.nodes[index].path.split(".")[1] for index in forward.block(2)}
        assert paths == {"2"}
        lines = graph_text(graph).splitlines()
        assert f"--  {count} blocks of {forward.length} nodes, the first of them:" in lines
        assert f"--  to node {forward.end - 1}: {count - 1} blocks more like it" in lines
        shown = len(graph.nodes) - (count - 1) * (forward.length + backward.length)
        assert nodes_in("\n".join(lines)) == shown
        assert any(
            line.split()[2:4] == ["h.*.mlp.fc.weight", f"(x{count})"]
            for line in lines
            if line.startswith("%")
        )
    assert len(graph_text(four).splitlines()) == len(graph_text(six).splitlines())
    assert nodes_in(graph_text(six, whole=True)) == len(six.nodes)


def test_blocks_that_read_unlike_things_are_no_stack() -> None:
    """The third block's residual sum skips a block: the same ops, another step."""
    graph = graph_of("gpt", layers=6)
    run = repeats(graph)[0]
    place = next(
        p
        for p, index in enumerate(run.block(0))
        if graph.nodes[index].op == "aten.add.Tensor" and graph.nodes[index].path == "h.0"
    )
    one, two = (graph.nodes[run.block(block)[place]] for block in (1, 3))
    skipped = replace(two, args=(one.args[0], *two.args[1:]))
    nodes = tuple(skipped if node is two else node for node in graph.nodes)
    assert run not in repeats(replace(graph, nodes=nodes))


def test_two_blocks_are_printed_both() -> None:
    assert repeats(graph_of("gpt")) == ()


def test_a_repeat_counts_its_blocks() -> None:
    run = Repeat(start=5, length=3, count=4)
    assert (run.end, list(run.block(0)), list(run.block(3))) == (17, [5, 6, 7], [14, 15, 16])


@pytest.mark.parametrize(
    ("whole", "words"),
    [(False, "((0, 1, 2, 3, ... 20 in all), (20,)"), (True, "17, 18, 19), (20,)")],
)
def test_long_constants_are_folded(whole: bool, words: str) -> None:
    graph = graph_of("mlp", layers=1)
    constant = replace(
        graph.nodes[0], op="shardwright.constant", args=(tuple(range(20)), (20,)), kwargs=()
    )
    text = graph_text(replace(graph, nodes=(constant, *graph.nodes[1:])), whole=whole)
    assert words in text


def test_many_operands_are_no_constant() -> None:
    graph = graph_of("mlp", layers=1)
    many = replace(graph.nodes[0], args=(tuple(Ref(0) for _ in range(20)),))
    assert "%0, " * 19 in graph_text(replace(graph, nodes=(many, *graph.nodes[1:])))


def test_blocks_with_numbered_random_ops_are_folded() -> None:
    """Dropout has a number of its own in every block: no reason to show each of them."""

    def build() -> Workload:
        blocks = [nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)) for _ in range(6)]
        return workload(nn.Sequential(*blocks), torch.randn(8, 4), torch.randn(8, 4))

    graph = trace(build).graph
    # The first block makes no gradient of its input.
    assert [run.count for run in repeats(graph)] == [5, 5]
    assert nodes_in(graph_text(graph)) < nodes_in(graph_text(graph, whole=True))
