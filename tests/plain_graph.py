"""A plain interpreter of graphs: one op after another, whole or microbatch by microbatch, as the
sections of its nodes say; and plain torch's own step, which it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planner.graph.graph import Graph, Node, map_refs
from planner.graph.sections import AFTER, BEFORE, BODY, is_accumulate, sections_of
from planner.kernels import Random, key_of_microbatch, precision, step_key
from planner.program.operators import callable_of, makes_tensors, torch_constants
from planner.workload.workload import Workload

__all__ = ["Result", "far", "interpreted", "plain", "torch_step"]

KEY = step_key(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of one step: losses, gradients and new values of buffers, all by name."""

    losses: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]


def torch_step(workload: Workload, microbatches: int = 1) -> Result:
    """One step of plain torch on the whole batch; or, accumulating the mean of their losses, on
    microbatches of it."""
    before = {name: t.clone() for name, t in workload.state().buffers.items()}
    losses: dict[str, Tensor] = {}
    parts = [workload.batch]
    if microbatches > 1:
        parts = list(zip(*(t.chunk(microbatches) for t in workload.batch), strict=True))
    for part in parts:
        with Random(KEY), precision(workload.compute):
            loss, parts = workload.loss_of(part)
        (loss / microbatches).backward()
        for name, one in {"": loss, **parts}.items():
            losses[name] = losses.get(name, torch.zeros(())) + one.detach() / microbatches
    state = workload.state()
    return Result(
        losses=losses,
        gradients={
            name: torch.zeros_like(p) if p.grad is None else p.grad.to_dense().clone()
            for name, p in state.trained.items()
        },
        buffers={
            name: t.clone()
            for name, t in state.buffers.items()
            if not torch.equal(t, before[name]) or t.numel() == 0
        },
    )


def interpreted(graph: Graph, workload: Workload) -> Result:
    """One step of the graph on the workload's batch and values."""
    held = workload.state().tensors
    values: dict[int, Tensor] = {}
    for value in graph.values:
        if value.kind in ("parameter", "buffer"):
            values[value.id] = held[value.name].detach().clone()
        if value.kind == "key":
            values[value.id] = KEY
    whole = dict(zip(graph.inputs, workload.batch, strict=True))
    _Steps(graph, values, whole).run()
    return Result(
        losses={
            "": values[graph.loss],
            **{name: values[v] for name, v in graph.reported},
        },
        gradients={p.name: values[p.gradient] for p in graph.parameters},
        buffers={graph.values[b].name: values[new] for b, new in graph.updates},
    )


class _Steps:
    def __init__(self, graph: Graph, values: dict[int, Tensor], whole: dict[int, Tensor]) -> None:
        self.graph, self.values, self.whole = graph, values, whole
        self.sections = sections_of(graph)

    def run(self) -> None:
        """Runs the step; afterwards `values` has those of the last microbatch."""
        for section in (BEFORE, BODY):
            sums: dict[int, Tensor] = {}
            for microbatch in range(self.graph.microbatches):
                self.begin(microbatch)
                self.run_section(section, sums)
                if section == BODY:
                    new = {
                        b: self.values[v] for b, v in self.graph.updates if b in self.graph.carried
                    }
                    self.values.update(new)
            self.values.update(sums)
        self.run_section(AFTER, {})

    def begin(self, microbatch: int) -> None:
        pieces = self.graph.pieces or (None,) * len(self.graph.inputs)
        for v, cut in zip(self.graph.inputs, pieces, strict=True):
            x = self.whole[v]
            if cut is not None:
                outer, here = cut
                x = x.reshape(outer, self.graph.microbatches * here, -1)
                x = x[:, microbatch * here : (microbatch + 1) * here]
            self.values[v] = x.reshape(self.graph.values[v].shape)
        if self.graph.microbatches > 1:
            for value in self.graph.values:
                if value.kind == "key":
                    self.values[value.id] = key_of_microbatch(KEY, microbatch)

    def run_section(self, section: str, sums: dict[int, Tensor]) -> None:
        for node, own in zip(self.graph.nodes, self.sections, strict=True):
            if own != section:
                continue
            out = run_node(node, self.values)
            for result, tensor, shape in zip(node.results, out, node.result_shapes, strict=False):
                if result is None:
                    continue
                assert tuple(tensor.shape) == shape, (node, tensor.shape)
                if is_accumulate(node):
                    sums[result] = sums[result] + tensor if result in sums else tensor
                else:
                    self.values[result] = tensor


def run_node(node: Node, values: Mapping[int, Tensor]) -> tuple[Any, ...]:
    args, kwargs = torch_constants(node.args), torch_constants(node.kwargs)
    call = map_refs((args, kwargs), lambda v: values[v])
    words = dict(call[1])
    if makes_tensors(node.op):
        words["device"] = torch.device("cpu")
    out = callable_of(node.op)(*_lists(call[0]), **words)
    return tuple(out) if isinstance(out, tuple | list) else (out,)


def _lists(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(list(a) if isinstance(a, tuple) else a for a in args)


def plain(build: Callable[[], Workload]) -> Workload:
    """The workload with real values: the same each time."""
    torch.manual_seed(0)
    return build()


def far(one: Result, other: Result) -> float:
    """The largest difference between two results, relative to the largest element of a tensor; for
    gradients that are 0 but for rounding, to a thousandth of the largest of all."""
    worst = 0.0
    least = 1e-3 * max(
        [0.0, *(float(g.abs().max()) for g in other.gradients.values() if g.numel())]
    )
    for ours, theirs in (
        (one.losses, other.losses),
        (one.gradients, other.gradients),
        (one.buffers, other.buffers),
    ):
        assert set(ours) == set(theirs), set(ours) ^ set(theirs)
        for name, a in ours.items():
            a, b = a.double(), theirs[name].double()
            assert a.shape == b.shape, name
            if a.numel():
                size = max(float(b.abs().max()), least if ours is one.gradients else 0.0) or 1.0
                worst = max(worst, float((a - b).abs().max()) / size)
    return worst
