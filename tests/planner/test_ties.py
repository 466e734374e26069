"""Repeated layers are tied, and only those; views are looked through."""

from __future__ import annotations

import pytest
from small_plans import ask_for, traced

from planner.dims.roots import is_view
from planner.dims.ties import layer_of, pattern_of
from planner.strategy.traced_model import Model


def classes(name: str, **sizes: int | str) -> tuple[int, int]:
    model, _ = traced(ask_for(name, **sizes))
    return len(model.ties.nodes_of), len(model.ties.parameters_of)


def members(model: Model) -> list[set[str]]:
    return [{model.graph.nodes[n].path for n in nodes} for nodes in model.ties.nodes_of]


def test_depth_does_not_grow_the_problem() -> None:
    """Layers of the middle are alike from three on; the classes of 3, 4 and 12 layers are the
    same."""
    assert classes("gpt", layers=3) == classes("gpt", layers=4) == classes("gpt", layers=12)
    assert classes("gpt", layers=2) <= classes("gpt", layers=12)
    two, twelve = (traced(ask_for("gpt", layers=n))[0] for n in (2, 12))
    assert len(twelve.graph.nodes) > 5 * len(two.graph.nodes)
    assert max(map(len, twelve.ties.nodes_of)) == 12
    assert max(map(len, twelve.ties.parameters_of)) == 12


def test_tied_nodes_do_the_same() -> None:
    for name in ("gpt", "mlp", "cnn", "lstm"):
        model, _ = traced(ask_for(name, **({"layers": 4} if name != "cnn" else {"blocks": 3})))
        for nodes in model.ties.nodes_of:
            tied = [model.graph.nodes[n] for n in nodes]
            assert (
                len(
                    {
                        (n.op, n.phase, pattern_of(n.path), n.result_shapes, n.result_dtypes)
                        for n in tied
                    }
                )
                == 1
            )
            assert len({model.dims.ops[n.index].sizes for n in tied}) == 1
        for parameters in model.ties.parameters_of:
            assert (
                len({model.graph.values[model.graph.parameters[p].value].shape for p in parameters})
                == 1
            )


def test_layers_of_unlike_sizes_are_not_tied() -> None:
    """The first layer of an MLP has other inputs, every block of a CNN another width."""
    mlp, _ = traced(ask_for("mlp", layers=4))
    names = [
        sorted(mlp.graph.parameters[p].name for p in group) for group in mlp.ties.parameters_of
    ]
    assert ["layers.0.weight"] in names
    assert ["layers.1.weight", "layers.2.weight", "layers.3.weight"] in names
    cnn, _ = traced(ask_for("cnn", blocks=3))
    assert all(len(nodes) == 1 for nodes in cnn.ties.nodes_of)
    assert all(len(group) == 1 for group in cnn.ties.parameters_of)


def test_equal_sizes_at_other_places_are_not_tied() -> None:
    """Square layers: the weights of attn.proj, mlp.fc and mlp.proj would be alike where mlp is
    as wide as embed."""
    model, _ = traced(ask_for("gpt", layers=3))
    for paths in members(model):
        assert len({pattern_of(path) for path in paths}) == 1


@pytest.mark.parametrize(
    ("path", "pattern", "layer"),
    [
        ("h.3.attn.qkv", "h.*.attn.qkv", "h.3"),
        ("wte", "wte", "wte"),
        ("", "", ""),
        ("a.0.b.12.c", "a.*.b.*.c", "a.0"),
        ("ln_1", "ln_1", "ln_1"),
    ],
)
def test_names_of_layers(path: str, pattern: str, layer: str) -> None:
    assert pattern_of(path) == pattern
    assert layer_of(path) == layer


def test_views_are_resolved_to_what_they_look_at() -> None:
    """A root is no view, a layout goes there and back, and the sub-dims of both are the same
    atoms."""
    for name in ("gpt", "lstm", "cnn"):
        model, _ = traced(ask_for(name))
        for value in model.graph.values:
            root = model.roots[value.id]
            writer = model.graph.values[root.value].writer
            assert writer is None or not is_view(model.dims, writer)
            assert sorted(root.places) == list(range(len(model.dims.atoms[root.value])))
            assert [model.dims.atoms[root.value][p] for p in root.places] == list(
                model.dims.atoms[value.id]
            )
            for place in range(len(root.places)):
                assert root.seen(root.layout((place, -1))) == (place, -1)
