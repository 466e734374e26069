"""Sub-dims: what is inferred from whole models, and what holds of every graph."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from trace_models import BUILDERS, built_in, graph_named, workload

from planner.dims.subdims import SubDims, infer
from planner.graph.graph import Graph
from planner.trace.trace import trace
from planner.workload.workload import Workload


def inferred(spec: str, **sizes: int) -> tuple[Graph, SubDims]:
    graph = trace(built_in(spec, **sizes)).graph
    return graph, infer(graph)


def shapes_by_name(graph: Graph, dims: SubDims) -> dict[str, tuple[tuple[int, ...], ...]]:
    return {p.name: dims.shapes[p.value] for p in graph.parameters}


class Reshaped(nn.Module):
    """A linear layer whose result goes through the given shapes."""

    def __init__(self, inputs: int, outputs: int, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.shapes = shapes

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        for shape in self.shapes:
            y = torch.sin(y.reshape(shape))
        return y


def reshaped(inputs: int, outputs: int, batch: int, *shapes: tuple[int, ...]) -> Graph:
    def build() -> Workload:
        return workload(
            Reshaped(inputs, outputs, *shapes),
            torch.randn(batch, inputs),
            torch.randn(batch),
            loss=lambda y, _: y.sum(),
        )

    return trace(build).graph


# ------------------------------------------------------------------------------------- whole models


def test_a_fused_qkv_weight_is_three_by_heads_by_depth() -> None:
    graph, dims = inferred(
        "gpt", layers=2, width=20, heads=4, vocab=32, positions=8, seq=7, batch=6
    )
    shapes = shapes_by_name(graph, dims)
    for layer in range(2):
        assert shapes[f"h.{layer}.attn.qkv.weight"][0] == (3, 4, 5)
        assert shapes[f"h.{layer}.attn.qkv.bias"] == ((3, 4, 5),)
        assert shapes[f"h.{layer}.attn.proj.weight"][1] == (4, 5)


def test_a_flattened_batch_is_batch_by_sequence() -> None:
    graph, dims = inferred(
        "gpt", layers=1, width=20, heads=4, vocab=32, positions=8, seq=7, batch=6
    )
    assert dims.shapes[graph.inputs[0]] == ((6,), (7,))
    products = [n for n in graph.nodes if n.op == "aten.mm.default" and n.phase == "forward"]
    assert {dims.shapes[n.operands[0]][0] for n in products} == {(6, 7)}


def test_the_sequence_is_one_atom_through_the_model() -> None:
    """So that an axis can split it everywhere but in attention."""
    graph, dims = inferred(
        "gpt", layers=2, width=20, heads=4, vocab=32, positions=8, seq=7, batch=6
    )
    batch, seq = dims.atoms[graph.inputs[0]]
    for node in graph.nodes:
        if node.op == "aten.mm.default" and node.phase == "forward":
            assert dims.atoms[node.operands[0]][:2] == (batch, seq)


def test_an_lstm_weight_is_gates_by_hidden() -> None:
    graph, dims = inferred("lstm", vocab=24, embed=6, hidden=10, layers=2, seq=5)
    shapes = shapes_by_name(graph, dims)
    for layer in range(2):
        assert shapes[f"lstm.weight_ih_l{layer}"][0] == (4, 10)
        assert shapes[f"lstm.weight_hh_l{layer}"] == ((4, 10), (10,))
        assert shapes[f"lstm.bias_ih_l{layer}"] == ((4, 10),)


def test_both_directions_of_an_lstm_meet_in_one_dim() -> None:
    graph = graph_named("bilstm")
    dims = infer(graph)
    assert shapes_by_name(graph, dims)["head.weight"][1] == (2, 4)


def test_separate_heads_are_found_in_the_projections() -> None:
    graph = graph_named("encoder")
    shapes = shapes_by_name(graph, infer(graph))
    for name in "qkv":
        assert shapes[f"layers.0.{name}.weight"][0] == (2, 4)
    assert shapes["layers.0.o.weight"][1] == (2, 4)


def test_groups_of_a_convolution() -> None:
    graph = graph_named("residual-cnn")
    shapes = shapes_by_name(graph, infer(graph))
    assert shapes["grouped.weight"][0][0] == 2
    assert math.prod(shapes["grouped.weight"][0]) == 8


def test_a_gradient_has_the_sub_dims_of_its_parameter() -> None:
    for name in BUILDERS:
        graph = graph_named(name)
        dims = infer(graph)
        for parameter in graph.parameters:
            assert dims.shapes[parameter.gradient] == dims.shapes[parameter.value], parameter.name


# ------------------------------------------------------------------------ reshapes that do not nest


def test_a_reshape_that_does_not_nest_keeps_its_dims_whole() -> None:
    graph = reshaped(4, 6, 4, (4, 2, 3), (4, 3, 2))
    dims = infer(graph)
    nodes = [
        n for n in graph.nodes if n.op == "shardwright.reshape" and n.result_shapes[0] == (4, 3, 2)
    ]
    (op,) = (dims.ops[n.index] for n in nodes if n.phase == "forward")
    assert op.fixed == frozenset(range(len(op.sizes)))
    assert not op.signature.view
    assert op.signature.linear == (frozenset({0}),)


def test_two_readers_that_take_a_dim_apart_differently() -> None:
    """6 is 2 x 3 for one and 3 x 2 for the other: the second is refused, the first keeps its
    sub-dims."""

    class Two(Reshaped):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x)
            return y.view(-1, 2, 3).sum((1, 2)) + y.view(-1, 3, 2).sin().sum((1, 2))

    graph = trace(lambda: workload(Two(4, 6), torch.randn(5, 4), torch.randn(5))).graph
    dims = infer(graph)
    forward = [
        n
        for n in graph.nodes
        if n.op == "shardwright.reshape" and n.phase == "forward" and len(n.result_shapes[0]) == 3
    ]
    assert [dims.ops[n.index].signature.view for n in forward] == [True, False]
    check(graph, dims)


# -------------------------------------------------------------------------------- what always holds


def check(graph: Graph, dims: SubDims) -> None:
    for value in graph.values:
        assert tuple(math.prod(dim) for dim in dims.shapes[value.id]) == value.shape
        assert len(dims.atoms[value.id]) == sum(map(len, dims.shapes[value.id]))
        assert all(size > 1 or value.numel == 0 for dim in dims.shapes[value.id] for size in dim)
    sizes: dict[int, int] = {}
    for value in graph.values:
        flat = [size for dim in dims.shapes[value.id] for size in dim]
        for atom, size in zip(dims.atoms[value.id], flat, strict=True):
            assert sizes.setdefault(atom, size) == size
    for node in graph.nodes:
        op = dims.ops[node.index]
        assert op.letter_sizes(op.sizes) == op.signature.sizes
        free = set(range(len(op.sizes))) - op.fixed
        pairs = [
            *zip(node.operands, op.operands, strict=True),
            *zip(node.results, op.results, strict=True),
        ]
        for value_id, leaves in pairs:
            if value_id is not None and free & set(leaves):
                flat = [size for dim in dims.shapes[value_id] for size in dim]
                assert [op.sizes[leaf] for leaf in leaves] == flat, node


@pytest.mark.parametrize("name", BUILDERS)
def test_of_every_model(name: str) -> None:
    graph = graph_named(name)
    check(graph, infer(graph))


FACTORS = st.lists(st.sampled_from([2, 3]), min_size=1, max_size=5)


@st.composite
def _chains(drawn: st.DrawFn) -> tuple[int, list[tuple[int, ...]]]:
    factors = drawn(FACTORS)
    shapes = []
    for _ in range(drawn(st.integers(1, 3))):
        order = drawn(st.permutations(factors))
        cuts = sorted(drawn(st.sets(st.integers(1, len(order)), max_size=3)) | {len(order)})
        shapes.append((4, *(math.prod(order[a:b]) for a, b in zip([0, *cuts], cuts, strict=False))))
    return math.prod(factors), shapes


@settings(max_examples=25, deadline=None)
@given(_chains())
def test_of_any_chain_of_reshapes(chain: tuple[int, list[tuple[int, ...]]]) -> None:
    size, shapes = chain
    graph = reshaped(3, size, 4, *shapes)
    check(graph, infer(graph))
