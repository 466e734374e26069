"""Pins on what backward computes again: what each leaves, which wins, and every error message."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from small_plans import ask_for, mesh_of, planned, traced

from cost_models.cluster import load_cluster
from cost_models.errors import BadValue, NoPlan, UnknownName
from planner.search.budget import Budget
from planner.search.searched import proposer_of
from planner.strategy.mode_pins import modes_under, pinned_again
from planner.strategy.pinned import check_pins
from planner.strategy.pins import RECOMPUTE, parse_pin, recompute_pins
from planner.strategy.traced_model import Model
from planner.trace.trace import trace
from planner.workload.ask import build


def modes(model: str, *pins: str) -> dict[str, set[str]]:
    """The modes of the ops of forward in layers, by module and op; views are left out."""
    made, _ = traced(ask_for(model, 1))
    chosen = modes_under(made, tuple(map(parse_pin, pins)))
    out: dict[str, set[str]] = {}
    for node, dims in zip(made.graph.nodes, made.dims.ops, strict=True):
        if node.phase == "forward" and dims.signature.kind != "view" and node.path[:2] == "h.":
            name = f"{node.path} {node.op.split('.')[1]}"
            out.setdefault(name, set()).add(chosen.get(node.index, "kept"))
    return out


def model(name: str = "gpt") -> Model:
    return traced(ask_for(name, 1))[0]


def test_full_runs_a_layer_again_but_for_what_no_one_needs() -> None:
    found = modes("gpt", "*=recompute")
    assert found["h.1.attn attention"] == found["h.0.mlp.fc mm"] == {"again"}
    assert found["h.1.ln_1 native_layer_norm"] == {"again"}
    assert found["h.1.mlp.proj mm"] == {"once"}
    assert found["h.1 add"] == {"again", "kept"}  # the second sum is what the next layer reads


def test_selective_keeps_products_and_fused_attention() -> None:
    found = modes("gpt", "*=selective")
    assert found["h.0.attn.qkv mm"] == found["h.0.attn attention"] == {"kept"}
    assert found["h.0.ln_1 native_layer_norm"] == found["h.0.mlp gelu"] == {"again"}
    # A sum that would need a product kept for it alone saves nothing.
    assert found["h.0 add"] == {"kept"}


def test_selective_runs_attention_that_is_not_fused_again() -> None:
    """Megatron's core attention: scores, softmax, and the product with the values."""
    made, _ = traced(ask_for("unfused", 1))
    chosen = modes_under(made, recompute_pins("selective"))
    core = {
        node.op: chosen.get(node.index, "kept")
        for node in made.graph.nodes
        if node.phase == "forward" and node.op in ("aten.bmm.default", "aten._softmax.default")
    }
    assert core == {"aten.bmm.default": "again", "aten._softmax.default": "again"}
    products = {
        chosen.get(node.index, "kept")
        for node in made.graph.nodes
        if node.phase == "forward" and node.op == "aten.mm.default"
    }
    assert products == {"kept"}


def test_the_last_pin_wins() -> None:
    found = modes("gpt", "*=recompute", "h.*.attn=keep", "h.1.attn.qkv=recompute")
    assert found["h.0.attn attention"] == found["h.1.attn attention"] == {"kept"}
    assert found["h.0.attn.qkv mm"] == {"kept"}
    assert found["h.0.mlp.fc mm"] == {"again"}
    assert modes("gpt", "h.0=recompute")["h.1.mlp.fc mm"] == {"kept"}
    assert set().union(*modes("gpt", "*=keep").values()) == {"kept"}


def test_a_view_follows_what_it_looks_at() -> None:
    """Kept, it would hold the memory of what is to run again."""
    made = model()
    splits = [
        n.index for n in made.graph.nodes if n.op == "aten.split.Tensor" and n.phase == "forward"
    ]
    again = pinned_again(made, (parse_pin("h.*.attn.qkv=recompute"),))
    assert {again[n] for n in splits} == {True}


def test_all_that_a_pin_decides_on_is_decided() -> None:
    """The head and the loss are kept under a pin on all modules, not left to be chosen."""
    made = model()
    decided = pinned_again(made, recompute_pins("full"))
    head = [n.index for n in made.graph.nodes if n.path == "lm_head" and n.phase == "forward"]
    assert {decided[n] for n in head if n in decided} == {False}
    assert pinned_again(made, recompute_pins("chosen")) == {}
    named = pinned_again(made, (parse_pin("ln_f=recompute"),))
    assert set(named.values()) == {True}


def test_a_model_without_layers_runs_again_by_the_children_of_its_root() -> None:
    made = model("lstm")
    chosen = modes_under(made, recompute_pins("full"))
    again = {made.graph.nodes[n].path for n, mode in chosen.items() if mode == "again"}
    assert again == {"lstm"}


def test_every_name_of_recompute_is_a_pin_or_none() -> None:
    assert [len(recompute_pins(name)) for name in RECOMPUTE] == [1, 1, 1, 0]
    with pytest.raises(UnknownName, match="unknown recompute 'all'"):
        recompute_pins("all")


def test_a_plan_runs_what_its_pins_say() -> None:
    plan = planned(ask_for("gpt", 2), "dp=2", ("*=ddp", "h.*.mlp=recompute"))
    again = [i.id for i in plan.program.instructions if i.id.partition("#")[0].endswith(".again")]
    assert again and all(".mlp." in name for name in again)


@pytest.mark.parametrize(
    ("pins", "error", "words"),
    [
        (("g.*=recompute",), UnknownName, "--pin 'g.*' matches nothing in the model"),
        (
            ("h.0.ln_1.weight=keep",),
            UnknownName,
            "matches parameters only (h.*.ln_1.weight), and keep is for ops: pin a module",
        ),
        (
            ("h.*=recompute", "h.*=keep"),
            BadValue,
            "--pin 'h.*=recompute' and --pin 'h.*=keep' contradict each other: leave one of them out",
        ),
        (
            ("*=recompute", "*=selective"),
            BadValue,
            "--recompute full '*=recompute' and --recompute selective '*=selective' contradict",
        ),
        (
            ("h.0.mlp=recompute", "h.*=keep"),
            NoPlan,
            "--pin 'h.0.mlp=recompute': --pin 'h.*=keep' after it decides on all that it matches",
        ),
        (
            ("h.*.mlp.proj=recompute",),
            NoPlan,
            "--pin 'h.*.mlp.proj=recompute': nothing that it matches is held for backward",
        ),
    ],
)
def test_pins_that_say_nothing_are_refused(
    pins: tuple[str, ...], error: type[Exception], words: str
) -> None:
    meshes = [mesh_of("dp=1"), mesh_of("dp=2")]
    with pytest.raises(error, match=re.escape(words)):
        check_pins(model(), meshes, tuple(map(parse_pin, pins)))


@pytest.mark.parametrize("name", ["gpt", "llama", "unfused", "t5"])
def test_pins_leave_a_plan_in_mixed_precision(name: str) -> None:
    """A result that only second runs read can be kept, if a pin keeps its op."""
    ask = replace(ask_for(name, 2), compute="bfloat16")
    seen = trace(lambda: build(ask), ask.model)
    cluster = load_cluster("dgx-h100", num_devices=2)
    for recompute in ("selective", "full"):
        proposer = proposer_of(ask, cluster, recompute_pins(recompute), Budget.unlimited(), seen)
        (first, *_) = proposer.proposals(mesh_of("dp=2"))
        assert first.solution.status == "optimal"
