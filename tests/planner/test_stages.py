"""The graphs of pipeline stages: run stage by stage, with what crosses handed over, they have the
losses, the gradients and the new buffers of plain torch on the whole batch."""

from __future__ import annotations

import pytest
import torch
from plain_graph import KEY, Result, far, plain, run_node, torch_step
from small_plans import ask_for
from torch import Tensor

from planner.dims.roots import roots_of
from planner.dims.subdims import infer
from planner.graph.graph import Graph, Node
from planner.graph.sections import AFTER, BEFORE, BODY, is_accumulate, sections_of
from planner.kernels import key_of_microbatch
from planner.microbatch import microbatch_graph
from planner.program.check_calls import called_faults
from planner.program.check_graph import graph_faults
from planner.stages import Cut, stage_graphs, units_of
from planner.trace.trace import trace
from planner.workload.ask import build
from planner.workload.workload import Workload


class _Stage:
    """Runs one stage's nodes by section and phase, microbatch by microbatch."""

    def __init__(self, graph: Graph, workload: Workload) -> None:
        self.graph, self.sections = graph, sections_of(graph)
        held = workload.state().tensors
        self.whole = dict(zip(graph.inputs, workload.batch, strict=True))
        self.values: dict[int, Tensor] = {
            v.id: held[v.name].detach().clone()
            for v in graph.values
            if v.kind in ("parameter", "buffer")
        }
        self.sums: dict[int, Tensor] = {}
        self.done: set[int] = set()

    def begin(self, microbatch: int) -> None:
        """Takes up a microbatch: its piece of the batch."""
        pieces = self.graph.pieces or (None,) * len(self.graph.inputs)
        for v, cut in zip(self.graph.inputs, pieces, strict=True):
            x = self.whole[v]
            if cut is not None:
                outer, here = cut
                x = x.reshape(outer, self.graph.microbatches * here, -1)
                x = x[:, microbatch * here : (microbatch + 1) * here]
            self.values[v] = x.reshape(self.graph.values[v].shape)
        for value in self.graph.values:
            if value.kind == "key":
                several = self.graph.microbatches > 1
                self.values[value.id] = key_of_microbatch(KEY, microbatch) if several else KEY

    def run(self, section: str, phases: tuple[str, ...], microbatch: int) -> None:
        """Runs the nodes that can be: those after a value that has not come yet are left."""
        self.begin(microbatch)
        for node, own in zip(self.graph.nodes, self.sections, strict=True):
            if own == section and node.phase in phases and self._ready(node):
                self._run(node)

    def _ready(self, node: Node) -> bool:
        return node.index not in self.done and self.values.keys() >= set(node.operands)

    def _run(self, node: Node) -> None:
        for result, tensor in zip(node.results, run_node(node, self.values), strict=False):
            if result is None:
                continue
            if is_accumulate(node):
                self.sums[result] = self.sums[result] + tensor if result in self.sums else tensor
            else:
                self.values[result] = tensor


def stepped(cut: Cut, workload: Workload) -> Result:
    """One step of all stages, one microbatch after another."""
    stages = [_Stage(one.graph, workload) for one in cut.stages]
    microbatches = cut.stages[0].graph.microbatches
    for stage in stages:
        for j in range(microbatches):
            stage.run(BEFORE, ("forward",), j)
        stage.values |= stage.sums
    for j in range(microbatches):
        for stage in stages:
            stage.run(BODY, ("forward",), j)
            _hand_over(cut, stages, "forward")
        for stage in reversed(stages):
            stage.run(BODY, ("backward", "update"), j)
            _hand_over(cut, stages, "backward")
        for stage in stages:
            buffers = dict(stage.graph.updates)
            stage.values |= {b: stage.values[buffers[b]] for b in stage.graph.carried}
    for stage in stages:
        stage.values |= stage.sums
        stage.done = (
            {n.index for n, s in zip(stage.graph.nodes, stage.sections, strict=True) if s != AFTER}
            if microbatches > 1
            else set()
        )
    for _ in range(2):
        for stage in stages:
            for node in stage.graph.nodes:
                if stage._ready(node) and not (is_accumulate(node)):
                    stage._run(node)
        _hand_over(cut, stages, "update")
    losses: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    buffers_: dict[str, Tensor] = {}
    for stage in stages:
        graph = stage.graph
        losses |= {
            "" if name == "loss" and v == graph.loss else name: stage.values[v]
            for name, v in graph.told
        }
        for p in graph.parameters:
            if p.name in gradients:
                assert torch.equal(gradients[p.name], stage.values[p.gradient]), p.name
            gradients[p.name] = stage.values[p.gradient]
        buffers_ |= {graph.values[b].name: stage.values[new] for b, new in graph.updates}
    return Result(losses=losses, gradients=gradients, buffers=buffers_)


def _hand_over(cut: Cut, stages: list[_Stage], phase: str) -> None:
    for crossing in cut.crossings:
        sent = dict(stages[crossing.source].graph.sent)
        received = dict(stages[crossing.target].graph.received)
        if crossing.phase == phase and sent[crossing.number] in stages[crossing.source].values:
            stages[crossing.target].values[received[crossing.number]] = stages[
                crossing.source
            ].values[sent[crossing.number]]


MODELS = ("gpt", "llama", "lstm", "seq2seq-lstm", "t5", "bert", "vit", "unet", "moe", "rnn", "cnn")


@pytest.mark.parametrize("name", MODELS)
def test_stages_compute_what_torch_does(name: str) -> None:
    ask = ask_for(name)
    graph = trace(lambda: build(ask), ask.model, whole=True).graph
    wanted = torch_step(plain(lambda: build(ask)))
    for microbatches, num in ((1, 2), (2, 3), (4, 4)):
        one = microbatch_graph(graph, infer(graph), microbatches, ("*",))
        dims = infer(one)
        units = units_of(one, dims)
        num = min(num, len(units))
        firsts = [units[i * len(units) // num].nodes[0] for i in range(num)]
        cut = stage_graphs(one, dims, firsts)
        for stage in cut.stages:
            assert not list(graph_faults(stage.graph))
            assert not list(called_faults(stage.graph))
        far_off = far(stepped(cut, plain(lambda: build(ask))), wanted)
        assert far_off < 1e-10, (microbatches, num, far_off)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_tied_model_is_cut_anywhere(microbatches: int) -> None:
    """The embedding is the head's too, so wherever the cut is its gradient has a share on each
    side; the loss and the embedding are both outside of all modules."""
    ask = ask_for("gpt")
    graph = trace(lambda: build(ask), ask.model, whole=True).graph
    wanted = torch_step(plain(lambda: build(ask)))
    one = microbatch_graph(graph, infer(graph), microbatches, ("*",))
    dims = infer(one)
    units = units_of(one, dims)
    for begin in range(1, len(units)):
        cut = stage_graphs(one, dims, [0, units[begin].nodes[0]])
        crossing = [c for c in cut.crossings if c.phase == "backward"]
        assert len(crossing) <= 1 and far(stepped(cut, plain(lambda: build(ask))), wanted) < 1e-10


@pytest.mark.parametrize("name", ["seq2seq-lstm", "gpt", "t5"])
def test_parameters_never_cross(name: str) -> None:
    """A stage's update may write to a parameter before what views it has left."""
    ask = ask_for(name)
    graph = trace(lambda: build(ask), ask.model, whole=True).graph
    dims = infer(graph)
    units = units_of(graph, dims)
    for unit in range(1, len(units)):
        cut = stage_graphs(graph, dims, [units[0].nodes[0], units[unit].nodes[0]])
        for stage in cut.stages:
            roots = roots_of(stage.graph, infer(stage.graph))
            for _, value in stage.graph.sent:
                writer = stage.graph.values[value].writer
                assert writer is not None
                (source,) = stage.graph.nodes[writer].operands
                assert stage.graph.values[roots[source].value].kind != "parameter", (unit, value)


def test_an_encoder_is_cut_from_its_decoder() -> None:
    """Though two states cross there, and neither is one of a row of blocks."""
    ask = ask_for("seq2seq-lstm")
    graph = trace(lambda: build(ask), ask.model, whole=True).graph
    ends = {graph.nodes[unit.nodes[-1]].path for unit in units_of(graph, infer(graph))}
    assert "encoder" in ends
