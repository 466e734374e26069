"""Strategies of ops and ways to keep parameters: which there are, and the layouts that follow."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_plans import ask_for, traced

from planner.dims.roots import is_view
from planner.dims.subdims import OpDims
from planner.graph.layout import (
    PARTIAL_SUM,
    REPLICATE,
    Layout,
    Mesh,
    is_split,
    local_shape,
    local_sizes,
    piece_sizes,
    show_layout,
)
from planner.plans.words import atom_names
from planner.strategy.strategies import (
    WHOLE,
    Option,
    op_strategies,
    options_of,
    parameter_strategies,
)


def every(axis: int, option: Option) -> bool:
    return True


def op(model: str, name: str, path: str, phase: str = "forward") -> tuple[OpDims, list[str | None]]:
    """An op of a small model, and the words of its leaves."""
    found, workload = traced(ask_for(model))
    names = atom_names(found, workload)
    node = next(
        n for n in found.graph.nodes if name in n.op and n.path == path and n.phase == phase
    )
    dims = found.dims.ops[node.index]
    return dims, [names.get(atom) for atom in dims.atoms]


def test_a_product_can_be_split_at_every_sub_dim() -> None:
    """The fused QKV weight is (3, heads, head_dim) x embed: rows, columns by heads, and the
    inner dim as partial sums."""
    dims, words = op("gpt", "mm", "h.0.attn.qkv")
    by_word = {
        words[s.options[0].number]: s
        for s in op_strategies(dims, (2,), every)
        if s.options[0].kind == "split"
    }
    assert set(by_word) == {"batch", "sequence", "embed", "heads", "head_dim", "three"}
    # 2 of 3: the larger piece.
    assert by_word["three"].sizes[by_word["three"].options[0].number] == 2
    assert by_word["batch"].operands == ((0,), (REPLICATE,))
    assert by_word["batch"].results == ((0,),)
    heads = by_word["heads"]
    assert heads.operands[0] == (REPLICATE,)
    assert is_split(heads.operands[1][0]) and is_split(heads.results[0][0])
    embed = by_word["embed"]
    assert is_split(embed.operands[0][0]) and is_split(embed.operands[1][0])
    assert embed.results == ((PARTIAL_SUM,),)


def test_linear_options_take_partial_sums() -> None:
    dims, _ = op("gpt", "mm", "h.0.attn.qkv")
    linear = [s for s in op_strategies(dims, (2,), every) if s.options[0].kind == "linear"]
    assert len(linear) == sum(map(bool, dims.signature.linear)) == 2
    assert {s.operands for s in linear} == {
        ((PARTIAL_SUM,), (REPLICATE,)),
        ((REPLICATE,), (PARTIAL_SUM,)),
    }
    assert {s.results for s in linear} == {((PARTIAL_SUM,),)}


@pytest.mark.parametrize(
    ("name", "path", "not_split"),
    [
        ("attention", "h.0.attn", {"sequence", "head_dim"}),
        ("native_layer_norm", "h.0.ln_1", {"embed"}),
    ],
)
def test_what_a_kernel_needs_whole_is_not_split(name: str, path: str, not_split: set[str]) -> None:
    dims, words = op("gpt", name, path)
    split = {words[o.number] for o in options_of(dims) if o.kind == "split"}
    assert not split & not_split
    assert "batch" in split


def test_lstm_splits_units_of_every_gate_and_never_the_gates() -> None:
    dims, words = op("lstm", "shardwright.lstm", "lstm")
    assert {words[o.number] for o in options_of(dims) if o.kind == "split"} == {"batch", "hidden"}


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["lstm", "mlp", "cnn", "gpt"]),
    st.integers(0, 10_000),
    st.sampled_from([(2,), (4,), (2, 2), (2, 1)]),
)
def test_layouts_follow_from_options(model: str, pick: int, mesh: tuple[int, ...]) -> None:
    """On every axis: a split leaf is split wherever it stands, nowhere else; local sizes are the
    leaves' over the axes."""
    found, _ = traced(ask_for(model))
    nodes = [n for n in found.graph.nodes if not is_view(found.dims, n.index)]
    dims = found.dims.ops[nodes[pick % len(nodes)].index]
    strategies = op_strategies(dims, mesh, every)
    assert any(all(o == WHOLE for o in s.options) for s in strategies)
    assert len({s.options for s in strategies}) == len(strategies)
    for strategy in strategies:
        for leaf, size in enumerate(dims.sizes):
            pieces = piece_sizes(size, tuple(mesh[axis] for axis in strategy.axes_of(leaf)))
            assert strategy.sizes[leaf] == max(pieces) and min(pieces) >= 1 and sum(pieces) == size
        for leaves, layout in (
            *zip(dims.operands, strategy.operands, strict=True),
            *zip(dims.results, strategy.results, strict=True),
        ):
            for option, placement in zip(strategy.options, layout, strict=True):
                if is_split(placement):
                    assert option == Option("split", leaves[placement])
                elif option.kind == "split":
                    assert option.number not in leaves


def test_zero_options_of_a_parameter() -> None:
    """On one axis of 2, a weight (4, 6): whole; updated in pieces of a dim (ZeRO-1/2); stored in
    pieces of a dim."""
    found = {s.options[0]: (s.stored, s.updated) for s in parameter_strategies((4, 6), (2,), every)}
    assert found == {
        WHOLE: ((REPLICATE,), (REPLICATE,)),
        Option("update", 0): ((REPLICATE,), (0,)),
        Option("update", 1): ((REPLICATE,), (1,)),
        Option("split", 0): ((0,), (0,)),
        Option("split", 1): ((1,), (1,)),
    }


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=1, max_size=3),
    st.sampled_from([(2,), (4,), (2, 2), (2, 4), (2, 2, 2)]),
)
def test_pieces_of_an_update_can_be_gathered_back(flat: list[int], mesh: tuple[int, ...]) -> None:
    """Updated pieces are cut from stored ones: on one sub-dim the axes that only update are
    inside those that store."""
    strategies = parameter_strategies(tuple(flat), mesh, every)
    for strategy in strategies:
        assert local_sizes(tuple(flat), strategy.stored, mesh) is not None
        assert local_sizes(tuple(flat), strategy.updated, mesh) is not None
        for axis, option in enumerate(strategy.options):
            later = strategy.options[axis + 1 :]
            assert not (option.kind == "update" and Option("split", option.number) in later)
    splits = [s for s in strategies if all(o.kind != "update" for o in s.options)]
    assert len(splits) == sum(
        local_sizes(tuple(flat), layout, mesh) is not None
        for layout in itertools.product((REPLICATE, *range(len(flat))), repeat=len(mesh))
    )


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_mesh_coordinates_and_groups(sizes: list[int]) -> None:
    mesh = Mesh(tuple("abc"[: len(sizes)]), tuple(sizes))
    assert [mesh.coordinate(r) for r in range(mesh.num_devices)] == list(
        itertools.product(*map(range, sizes))
    )
    for axes in itertools.chain.from_iterable(
        itertools.combinations(range(len(sizes)), k) for k in (1, len(sizes))
    ):
        groups = mesh.groups(axes)
        assert sorted(r for g in groups for r in g) == list(range(mesh.num_devices))
        for group in groups:
            rest = {
                tuple(p for a, p in enumerate(mesh.coordinate(r)) if a not in axes) for r in group
            }
            assert len(rest) == 1


@pytest.mark.parametrize(
    ("layout", "shape", "words"),
    [
        ((0, 2), (16, 8), "S(0) S(2)"),
        ((1, REPLICATE), (16, 16), "S(1) R"),
        ((1, 1), (8, 16), "S(1) S(1)"),
        ((PARTIAL_SUM, -3), (32, 16), "P P(max)"),
    ],
)
def test_local_shapes_and_words(layout: Layout, shape: tuple[int, ...], words: str) -> None:
    assert local_shape(((4, 8), (16,)), layout, (2, 2)) == shape
    assert show_layout(layout) == words
