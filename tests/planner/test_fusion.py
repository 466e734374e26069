"""Fused ops: what they compute, how they split, which ops become one, and what stays apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_graph import KEY, far, interpreted, plain
from rule_proof import assignments, map_refs_in_order, prove, run_op, trial
from torch import Tensor, nn
from trace_models import BUILDERS, built_in, workload

from cost_models.cluster import load_cluster
from cost_models.memory import dtype_bytes
from planner.dims.subdims import infer
from planner.fusion.fuse import fused_graph
from planner.graph.fused import FUSED, Body, body_of, called
from planner.graph.graph import Graph, Node
from planner.microbatch import microbatch_graph
from planner.plans.models import modelled
from planner.program.check_graph import graph_faults
from planner.program.operators import torch_constants
from planner.strategy.op_costs import OpCosts
from planner.trace.trace import trace
from planner.trace.traced import Traced
from planner.workload.ask import Ask
from planner.workload.workload import Workload

LLAMA = {"layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "mlp": 24, "vocab": 32, "seq": 8}
NAMES = ("gpt", "encoder", "decoder", "norms", "activations", "joins", "bilstm")
MODELS: dict[str, Callable[[], Any]] = {
    **{name: BUILDERS[name] for name in NAMES},
    "llama of two layers": built_in("llama", **LLAMA),
}

COMPILED = Ask(
    model="llama", batch=4, seq=None, settings={}, dtype="float64", num_devices=1, compile=True
)


@cache
def traced(name: str) -> Traced:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return trace(MODELS[name])
    finally:
        torch.set_default_dtype(before)


def fused_step(name: str) -> Graph:
    return fused_graph(traced(name).graph)


def fused_nodes(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == FUSED]


def ran(graph: Graph, given: dict[str, Tensor]) -> dict[int, Tensor]:
    """Every value of the graph, by running its nodes one after the other."""
    values = {v.id: given[f"{v.kind} {v.name}"] for v in graph.values if v.writer is None}
    for node in graph.nodes:
        args = map_refs_in_order(node.args, [values[v] for v in node.operands])
        out = run_op(node.op, torch_constants(args), node.kwargs)
        values.update({v: r for v, r in zip(node.results, out, strict=True) if v is not None})
    return values


def given_of(graph: Graph) -> dict[str, Tensor]:
    torch.manual_seed(0)
    out = {}
    for value in graph.values:
        if value.writer is None:
            real = torch.rand(value.shape, dtype=torch.float64) * 0.8 + 0.1
            whole = torch.randint(0, 2, value.shape)
            out[f"{value.kind} {value.name}"] = whole if "int" in value.dtype else real
    return out


@pytest.mark.parametrize("name", MODELS)
def test_the_fused_step_is_the_step(name: str) -> None:
    """Loss, gradients and new buffers are those of the graph as traced, and every fused op of it in
    shards is the op whole."""
    graph = traced(name).graph
    made = fused_graph(graph)
    assert [*graph_faults(made)] == []
    given = given_of(graph)
    before, after = ran(graph, given), ran(made, given)
    pairs = [(graph.loss, made.loss)]
    pairs += [
        (a.gradient, b.gradient) for a, b in zip(graph.parameters, made.parameters, strict=True)
    ]
    pairs += [(a, b) for (_, a), (_, b) in zip(graph.updates, made.updates, strict=True)]
    for old, new in pairs:
        torch.testing.assert_close(after[new], before[old], rtol=1e-9, atol=1e-12)
    for node in {body_of(n.args): n for n in fused_nodes(made)}.values():
        args = map_refs_in_order(node.args, [after[v] for v in node.operands])
        it = trial(node.op, args, dict(node.kwargs), taken_apart=False)
        assert it.node.result_shapes == node.result_shapes
        for mesh, choices in assignments(it.op, limit=4):
            prove(it, mesh, choices)


def test_a_llama_layer_is_nine_fused_ops() -> None:
    """Rotary positions of queries and keys, the residual sums with the norms that read them, the
    gate; each with its backward."""
    made = [
        (n.path.removeprefix("layers.1."), n.phase, called(body_of(n.args)))
        for n in fused_nodes(fused_step("llama of two layers"))
        if n.path.startswith("layers.1.")
    ]
    assert made == [
        *[("attn", "forward", "mul, split, neg, cat, mul, add")] * 2,
        ("post_norm", "forward", "add, rms_norm"),
        ("mlp", "forward", "silu, mul"),
        ("mlp", "backward", "silu, mul, mul, silu_backward"),
        ("post_norm", "backward", "add, rms_norm_backward"),
        *[("attn", "backward", "mul, slice, neg, mul, slice, cat, add")] * 2,
        ("input_norm", "backward", "add, add, rms_norm_backward"),
    ]


def test_every_layer_is_fused_alike() -> None:
    """Like layers stay tied: the problem does not grow with depth."""
    classes = []
    for layers in (4, 6):
        once = trace(built_in("llama", **LLAMA | {"layers": layers}))
        classes.append(len(modelled(once, COMPILED).ties.nodes_of))
    assert classes[0] == classes[1]


def test_products_that_are_added_stay_one_message() -> None:
    """Under tensor parallelism the gradients of two column-split products are summed while partial:
    a fused op with that sum must take both as partial sums."""
    made = modelled(traced("llama of two layers"), COMPILED)
    sums = [
        made.dims.ops[node.index].signature.linear
        for node in fused_nodes(made.graph)
        if node.phase == "backward" and "add, rms_norm_backward" in called(body_of(node.args))
    ]
    assert sums and all(any(len(group) >= 2 for group in linear) for linear in sums)


def _graph(module: nn.Module, *batch: Tensor) -> Graph:
    return fused_graph(trace(lambda: workload(module, *batch)).graph)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(F.silu(self.first(x)).exp().neg()).tanh()
        return out


def test_a_bias_stays_with_its_product() -> None:
    """Lowering joins the two in one kernel, which costs no pass at all."""
    made = _graph(Chain(), torch.randn(4, 8), torch.randn(4, 8))
    forward = [called(body_of(n.args)) for n in fused_nodes(made) if n.phase == "forward"]
    assert [ops for ops in forward if "silu" in ops] == ["silu, exp, neg"]
    assert any(n.op == "aten.add.Tensor" for n in made.nodes)


def test_the_cost_is_one_read_and_one_write() -> None:
    """In closed form: bytes of the operands and results, whatever happens between."""
    made = modelled(traced("llama of two layers"), COMPILED)
    cluster = load_cluster("dgx-h100", num_devices=1)
    costs = OpCosts(cluster, (1,), None)  # type: ignore[arg-type]
    for node in fused_nodes(made.graph):
        op, body = made.dims.ops[node.index], body_of(node.args)
        kinds = body.kinds()
        outside = [*range(len(body.operands)), *body.results]
        nbytes = sum(math.prod(kinds[slot][0]) * dtype_bytes(kinds[slot][1]) for slot in outside)
        assert op.signature.cost is not None
        counted = op.signature.cost(op.letter_sizes(op.sizes))
        assert counted.elements * 8 == pytest.approx(nbytes)
        device = cluster.device
        floor = nbytes / (device.memory_bandwidth * device.memory_efficiency)
        seconds = costs.device_time(node, op, op.letter_sizes(op.sizes))
        assert seconds >= floor


def test_like_bodies_are_equal() -> None:
    bodies: list[Body] = [
        body_of(n.args)
        for n in fused_nodes(fused_step("llama of two layers"))
        if n.path.endswith("mlp") and n.phase == "forward"
    ]
    assert len(bodies) == 2 and bodies[0] == bodies[1] and hash(bodies[0]) == hash(bodies[1])


def test_the_gate_is_made_again_in_backward() -> None:
    """Only backward's fused op reads it, which reads what it is made of: so it is neither written
    nor kept."""
    made = fused_step("llama of two layers")
    (forward,) = [n for n in fused_nodes(made) if (n.path, n.phase) == ("layers.1.mlp", "forward")]
    (backward,) = [
        n for n in fused_nodes(made) if (n.path, n.phase) == ("layers.1.mlp", "backward")
    ]
    assert len(forward.results) == 1 and len(backward.operands) == 3


class Kept(nn.Module):
    """A gate that a product of backward reads too: it is kept anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.silu(self.first(x))
        out: Tensor = self.last(gate).tanh() * gate.exp()
        return out


def test_what_is_kept_anyway_is_not_made_again() -> None:
    made = _graph(Kept(), torch.randn(4, 8), torch.randn(4, 8))
    backward = [n for n in fused_nodes(made) if n.phase == "backward"]
    assert backward and not any("silu," in called(body_of(n.args)) for n in backward)


class Halves(nn.Module):
    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.gated = gated

    def forward(self, x: Tensor) -> Tensor:
        mid = self.first(x)
        mid = F.silu(mid) if self.gated else -mid
        one, other = mid.split(4, -1)
        out: Tensor = self.last(mid + torch.cat((other, one), -1)).tanh()
        return out


@pytest.mark.parametrize("gated", [False, True])
def test_a_dear_value_is_not_computed_at_two_places(gated: bool) -> None:
    """A compiler would write it and read it again, inside the op, where nobody counts it."""
    made = _graph(Halves(gated), torch.randn(4, 8), torch.randn(4, 8))
    forward = [called(body_of(n.args)) for n in fused_nodes(made) if n.phase == "forward"]
    (joined,) = [ops for ops in forward if "cat" in ops]
    assert ("silu" in joined, "neg" in joined) == (False, not gated)


@pytest.mark.parametrize("name", ["gpt", "llama of two layers"])
def test_a_microbatch_is_fused_like_a_batch(name: str) -> None:
    """Of two microbatches, interpreted one op after another, loss and gradients are those of the
    graph that is not fused."""
    graph = traced(name).graph
    cut = microbatch_graph(graph, infer(graph), 2)
    made = fused_graph(cut)
    assert [*graph_faults(made)] == [] and fused_nodes(made)
    assert far(interpreted(made, _plain(name)), interpreted(cut, _plain(name))) < 1e-12


def _plain(name: str) -> Workload:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return plain(MODELS[name])
    finally:
        torch.set_default_dtype(before)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.norm = nn.Linear(8, 8), nn.Dropout(0.5), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.drop(self.first(x)))
        return out


def test_dropout_is_drawn_in_the_chain_that_reads_it() -> None:
    """From the hashes of rows and columns: the mask is that of the op by itself, and in shards that
    of the whole."""
    torch.manual_seed(0)
    once = trace(lambda: workload(Dropping().double(), *(torch.randn(6, 8).double(),) * 2)).graph
    made = fused_graph(once)
    (node,) = [n for n in fused_nodes(made) if n.phase == "forward" and "drop_by" in str(n.args)]
    assert "drop_by, add, native_layer_norm" in called(body_of(node.args))
    given = given_of(once) | {f"key {v.name}": KEY for v in once.values if v.kind == "key"}
    before, after = ran(once, given), ran(made, given)
    for old, new in zip(once.parameters, made.parameters, strict=True):
        assert torch.allclose(before[old.gradient], after[new.gradient], rtol=1e-12)
    args = map_refs_in_order(node.args, [after[v] for v in node.operands])
    it = trial(node.op, args, {}, taken_apart=True)
    for mesh, choices in assignments(it.op):
        prove(it, mesh, choices)
