"""A graph that is broken in one way is found out by the one line that names the node: every rule
of the checker has its mutation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_plans import ask_for, traced
from torch import Tensor, nn

from planner.dims.subdims import infer
from planner.graph.graph import Graph, Node, Ref, Value, without_unread
from planner.program.check_calls import called_faults
from planner.program.check_graph import dims_faults, graph_faults, lint_faults
from planner.trace.trace import trace
from planner.workload.workload import Workload

Change = Callable[[Graph], Graph]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return traced(ask_for("mlp"))[0].graph


@pytest.fixture(scope="module")
def normed() -> Graph:
    """One that changes buffers, and reports two losses."""
    return traced(ask_for("normed"))[0].graph


def with_node(graph: Graph, at: int, **changed: Any) -> Graph:
    nodes = list(graph.nodes)
    nodes[at] = replace(nodes[at], **changed)
    return replace(graph, nodes=tuple(nodes))


def with_value(graph: Graph, at: int, **changed: Any) -> Graph:
    values = list(graph.values)
    values[at] = replace(values[at], **changed)
    return replace(graph, values=tuple(values))


def first(graph: Graph, op: str) -> Node:
    return next(node for node in graph.nodes if node.op == op)


def made(node: Node) -> int:
    return next(result for result in node.results if result is not None)


def with_shape(graph: Graph, op: str, shape: tuple[int, ...], dtype: str = "float64") -> Graph:
    """The first node of an op makes another shape, and its value says so too."""
    node = first(graph, op)
    return with_value(
        with_node(graph, node.index, result_shapes=(shape,), result_dtypes=(dtype,)),
        made(node),
        shape=shape,
        dtype=dtype,
    )


def read_early(graph: Graph) -> Graph:
    """The first node reads what the last one writes."""
    last = made(graph.nodes[-1])
    return with_node(graph, 0, args=(Ref(last), *graph.nodes[0].args[1:]))


def dead(graph: Graph) -> Graph:
    """A node more, at the end, that nobody reads."""
    node = replace(
        graph.nodes[0],
        index=len(graph.nodes),
        op="aten.full.default",
        args=((2,), 0),
        kwargs=(),
        results=(len(graph.values),),
        result_shapes=((2,),),
        result_dtypes=("float64",),
    )
    value = Value(
        id=len(graph.values),
        shape=(2,),
        dtype="float64",
        kind="activation",
        name="full_0",
        writer=node.index,
    )
    return replace(graph, nodes=(*graph.nodes, node), values=(*graph.values, value))


def with_parameter(graph: Graph, at: int, **changed: Any) -> Graph:
    parameters = list(graph.parameters)
    parameters[at] = replace(parameters[at], **changed)
    return replace(graph, parameters=tuple(parameters))


MUTATIONS: dict[str, tuple[Change, str]] = {
    "index": (lambda g: with_node(g, 3, index=4), "has index 4"),
    "phase": (lambda g: with_node(g, 3, phase="later"), "is of phase 'later': forward or backward"),
    "id": (lambda g: with_value(g, 3, id=4), "value 3 has id 4"),
    "given is written": (
        lambda g: with_value(g, g.inputs[0], writer=2),
        "an input, is written by node 2".replace("an ", "a "),
    ),
    "kind": (
        lambda g: with_value(g, made(g.nodes[2]), kind="thing"),
        "is a 'thing': activation or parameter",
    ),
    "another writer": (
        lambda g: with_value(g, made(g.nodes[5]), writer=1),
        "names node 1 as its writer, written by [5]",
    ),
    "two writers": (
        lambda g: with_node(g, 6, results=(made(g.nodes[5]),)),
        "as its writer, written by [5, 6]",
    ),
    "no such result": (
        lambda g: with_node(g, 5, results=(999,)),
        "node 5 (aten.mm.default) writes value 999, there are 66",
    ),
    "no such operand": (lambda g: with_node(g, 5, args=(Ref(999),)), "reads value 999, there are"),
    "read before it is written": (read_early, "writes later"),
    "no such loss": (lambda g: replace(g, loss=999), "the loss is value 999, there are"),
    "no such gradient": (
        lambda g: with_parameter(g, 0, gradient=999),
        "the gradient of 'layers.0.weight' is value 999",
    ),
    "counts": (
        lambda g: with_node(g, 5, result_dtypes=()),
        "has unlike numbers of results, shapes and dtypes: [0, 1]",
    ),
    "result": (
        lambda g: with_node(g, 5, result_shapes=((7, 7),)),
        "makes float64[7, 7], its value",
    ),
    "dtype": (lambda g: with_node(g, 5, result_dtypes=("float16",)), "makes float16["),
    "product": (lambda g: with_shape(g, "aten.mm.default", (8, 33)), "makes [8, 33]: not [8, 32]"),
    "product's dtype": (
        lambda g: with_shape(g, "aten.mm.default", (8, 32), "float32"),
        "float64[16, 32] makes float32",
    ),
    "permute": (
        lambda g: with_shape(g, "aten.permute.default", (16, 33)),
        "makes [16, 33]: not [16, 32]",
    ),
    "add": (lambda g: with_shape(g, "aten.add.Tensor", (1, 32)), "makes [1, 32]: not [8, 32]"),
    "no product": (
        lambda g: with_node(
            g, first(g, "aten.mm.default").index, args=(Ref(g.inputs[0]), Ref(g.inputs[0]))
        ),
        "the op does not take them",
    ),
    "dead": (dead, "(aten.full.default) makes [66], which nothing needs"),
    "undeclared parameter": (
        lambda g: replace(g, parameters=g.parameters[1:]),
        "the parameters are declared as values [1, 2",
    ),
    "undeclared input": (
        lambda g: replace(g, inputs=g.inputs[1:]),
        "the inputs are declared as values",
    ),
    "undeclared buffer": (
        lambda g: replace(g, buffers=(0,)),
        "the buffers are declared as values [0]",
    ),
    "a name twice": (
        lambda g: with_parameter(g, 1, name=g.parameters[0].name),
        "2 parameters are called 'layers.0.weight'",
    ),
    "another name": (
        lambda g: with_parameter(g, 1, name="x"),
        "parameter 'x' is value 1, called 'layers.0.bias'",
    ),
    "loss": (lambda g: replace(g, loss=g.inputs[0]), "float64[8, 16]: one number is due"),
    "reported": (lambda g: replace(g, reported=(("a", g.inputs[0]),)), "reported 'a' is value"),
    "gradient": (
        lambda g: with_parameter(g, 0, gradient=g.parameters[1].gradient),
        "the gradient of 'layers.0.weight' is value",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_graph_is_found_out_by_one_line(graph: Graph, name: str) -> None:
    change, words = MUTATIONS[name]
    found = list(graph_faults(change(graph)))
    assert any(words in fault for fault in found), found
    assert all("\n" not in fault for fault in found)


def test_a_traced_graph_has_no_faults(graph: Graph, normed: Graph) -> None:
    for one in (graph, normed):
        assert [*graph_faults(one), *called_faults(one)] == []


def test_only_buffers_change_and_keep_their_shape(normed: Graph) -> None:
    (buffer, new), *others = normed.updates
    weight = normed.parameters[0]
    assert any(
        "for float64" in fault
        for fault in graph_faults(replace(normed, updates=((buffer, normed.loss), *others)))
    )
    changed = replace(normed, updates=((weight.value, weight.gradient), (buffer, new), *others))
    assert f"the step changes value {weight.value}, a parameter: only buffers are" in list(
        graph_faults(changed)
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((8, 33), "float64", "not of (8, 33) in float64"),
        ((8, 32), "float32", "not of (8, 32) in float32"),
    ],
)
def test_what_an_op_does_not_give_is_found_by_calling_it(
    graph: Graph, shape: tuple[int, ...], dtype: str, words: str
) -> None:
    """An op without a rule of shapes, whose node and value agree with each other."""
    node = first(graph, "aten.mm.default")
    (fault,) = called_faults(with_shape(graph, "aten.mm.default", shape, dtype))
    assert fault.startswith(
        f"node {node.index} (aten.mm.default) of float64 [8, 16], float64 [16, 32]: it gives a tensor"
    )
    assert words in fault


def test_ops_of_our_own_are_called_as_they_were_traced() -> None:
    graph = traced(ask_for("gpt"))[0].graph
    node = first(graph, "shardwright.cross_entropy")
    changed = with_node(graph, node.index, result_shapes=((3,), *node.result_shapes[1:]))
    (fault,) = called_faults(with_value(changed, made(node), shape=(3,)))
    assert fault.startswith(f"node {node.index} (shardwright.cross_entropy.default) of ")


def test_sub_dims_make_up_the_shape(graph: Graph) -> None:
    shapes = list(infer(graph).shapes)
    assert list(dims_faults(graph, shapes)) == []
    shapes[0] = ((4,), (8,))
    assert list(dims_faults(graph, shapes)) == [
        "value 0, float64[32, 16], has sub-dims ((4,), (8,))"
    ]


def test_what_torch_finds_wrong_with_a_recorded_graph_is_a_line() -> None:
    recorded = torch.fx.symbolic_trace(torch.nn.ReLU()).graph
    assert list(lint_faults(recorded)) == []
    first_, second, *_ = recorded.nodes
    second.append(first_)
    (fault,) = lint_faults(recorded)
    assert "was used before it has been defined" in fault


def test_what_nothing_needs_is_left_out(graph: Graph) -> None:
    """And the rest is as if it had never been: numbers and names too."""
    assert without_unread(graph) is graph
    assert without_unread(dead(graph)) == graph
    front = dead(graph)
    nodes = [front.nodes[-1], *front.nodes[:-1]]
    indices = {node.index: new for new, node in enumerate(nodes)}
    values = tuple(
        v if v.writer is None else replace(v, writer=indices[v.writer]) for v in front.values
    )
    moved = replace(
        front, nodes=tuple(replace(n, index=indices[n.index]) for n in nodes), values=values
    )
    assert without_unread(moved) == graph


class _Biased(nn.Module):
    """Its gradient is added to zeros that torch makes, as that of T5's relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(4, 3))

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        return x + self.table[where]


def test_zeros_to_which_a_gradient_is_added_leave_no_node() -> None:
    def make() -> Workload:
        batch = (torch.ones(5, 3), torch.zeros(5, dtype=torch.int64), torch.ones(5, 3))
        return Workload(name="biased", module=_Biased(), batch=batch, loss=nn.functional.mse_loss)

    found = trace(make).graph
    assert "aten.embedding_dense_backward.default" in [node.op for node in found.nodes]
    assert list(graph_faults(found)) == []
