"""The planner's graph of a step as torch's partitioner reads it, and what a choice of saved values
costs by one walk over that graph.

Private torch APIs: only here.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import fx
from torch._functorch import config
from torch._functorch import partitioners as torchs
from torch.utils._ordered_set import OrderedSet

from cost_models.memory import dtype_bytes
from planner.dims.roots import is_view
from planner.graph.graph import Node
from planner.solver.problem.problem import Array
from planner.strategy.cost_table import CostTable
from planner.strategy.traced_model import Model

__all__ = ["Joint", "Priced", "Prices"]

#: Ops whose kind decides what torch's partitioner may do, by ours.
_ALIKE: dict[str, Any] = {
    "shardwright.reshape": torch.ops.aten.view.default,
    "shardwright.attention": torch.ops.aten._scaled_dot_product_flash_attention.default,
    "shardwright.masked_attention": torch.ops.aten._scaled_dot_product_flash_attention.default,
    "shardwright.rms_norm": torch.ops.aten.native_layer_norm.default,
    "shardwright.dropout": torch.ops.aten.native_dropout.default,
    "shardwright.cross_entropy": torch.ops.aten._log_softmax.default,
    "shardwright.count_targets": torch.ops.aten.sum.default,
    "shardwright.uniform": torch.ops.aten.rand.default,
}


@dataclass(frozen=True, kw_only=True)
class Priced:
    """Seconds of the ops that run again, bytes of forward's values at every node, and bytes of what
    is saved at the turn from forward to backward."""

    seconds: float
    held: Array
    saved: int


class Prices:
    """What a set of saved values costs, by walking the graph."""

    def __init__(self, table: CostTable) -> None:
        self.table, self.model = table, table.model
        self.seconds: dict[int, float] = {}
        for number, members in zip(table.node_of, self.model.ties.nodes_of, strict=True):
            for member in members if number is not None else ():
                self.seconds[member] = table.costing.ops.cost(
                    self.model.graph.nodes[member],
                    self.model.dims.ops[member],
                    table.strategies[number][0],
                )

    def nbytes(self, value: int) -> int:
        found = self.model.graph.values[value]
        return found.numel * dtype_bytes(found.dtype)

    def is_free(self, value: int) -> bool:
        """Whether a value is there anyway: an input, a parameter, or a parameter in a format."""
        return self.model.graph.values[value].writer is None or value in self.model.formats

    def of(self, saved: set[int]) -> Priced:
        """The price of keeping some root values. Views take no memory of their own."""
        graph, roots = self.model.graph, self.model.roots
        again: dict[int, int] = {}  # node -> when it runs again
        last: dict[int, int] = {}  # value -> when backward reads it last
        for node in graph.nodes:
            if node.phase != "backward":
                continue
            pending = [roots[v].value for v in node.operands]
            while pending:
                value = pending.pop()
                writer = graph.values[value].writer
                if self.is_free(value) or writer is None:
                    continue
                if graph.nodes[writer].phase != "forward":
                    continue
                last[value] = node.index
                if value not in saved and writer not in again:
                    again[writer] = node.index
                    pending += [roots[v].value for v in graph.nodes[writer].operands]
        steps = np.zeros(len(graph.nodes) + 2)
        for storage, spans in self._spans(saved, again, last).items():
            for start, end in spans:
                steps[start] += self.nbytes(storage)
                steps[end + 1] -= self.nbytes(storage)
        kept = {self._storage(v) for v in last if v in saved or graph.values[v].writer not in again}
        return Priced(
            seconds=sum(self.seconds[n] for n in again),
            held=np.cumsum(steps)[:-1],
            saved=sum(self.nbytes(v) for v in kept if not self.is_free(v)),
        )

    def _spans(
        self, saved: set[int], again: dict[int, int], last: dict[int, int]
    ) -> dict[int, list[tuple[int, int]]]:
        """From which node to which every storage is held."""
        graph, forward = self.model.graph, self._forward_last
        spans: dict[int, list[tuple[int, int]]] = {}
        for value, read in forward.items():
            writer = graph.values[value].writer
            if self.is_free(value) or writer is None:
                continue
            found, storage = spans.setdefault(self._storage(value), []), self._storage(value)
            first = graph.values[storage].writer
            start = writer if first is None else first
            if value not in last:
                found.append((start, read))
            elif value in saved or writer not in again:
                found.append((start, max(read, last[value])))
            else:
                found += [(start, read), (again[writer], last[value])]
        return {
            storage: _joined(found) for storage, found in spans.items() if not self.is_free(storage)
        }

    @cached_property
    def _forward_last(self) -> dict[int, int]:
        """The last reading of every value of forward in forward."""
        graph, out = self.model.graph, {}
        for node in graph.nodes:
            if node.phase == "forward" and not is_view(self.model.dims, node.index):
                out |= {v: node.index for v in node.results if v is not None}
                out |= {self.model.roots[v].value: node.index for v in node.operands}
        return out

    def _storage(self, value: int) -> int:
        """The value whose memory a view (a slice, an expansion) shares."""
        writer = self.model.graph.values[value].writer
        while writer is not None and self.model.dims.ops[writer].signature.kind == "view":
            value = self.model.roots[self.model.graph.nodes[writer].operands[0]].value
            writer = self.model.graph.values[value].writer
        return value


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans without overlaps."""
    out: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = out[-1][0], max(end, out[-1][1])
        else:
            out.append((start, end))
    return out


class Estimator(torchs.CustomRuntimeEstimator):
    """Our seconds of every op."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    def __call__(self, node: fx.Node) -> float:
        return self.seconds.get(node.name, 0.0)

    def uuid(self) -> None:
        return None


class Joint:
    """The planner's graph as torch's partitioner reads it."""

    def __init__(self, model: Model, prices: Prices) -> None:
        self.model, self.graph = model, fx.Graph()
        self.node_of: dict[int, fx.Node] = {}
        self.value_of: dict[fx.Node, int] = {}
        self.seconds: dict[str, float] = {}
        self.forward: list[fx.Node] = []
        self.backward: list[fx.Node] = []
        for number, value in enumerate(model.graph.values):
            if value.writer is None or value.id in model.formats:
                self._is(value.id, self.graph.placeholder(f"primals_{number + 1}"))
        for node in model.graph.nodes:
            if not (node.results and node.results[0] in model.formats):
                self._add(node, prices)
        self.graph.output(tuple(self.node_of[p.gradient] for p in model.graph.parameters))
        self._distances()

    def _is(self, value: int, node: fx.Node) -> None:
        found = self.model.graph.values[value]
        node.meta["val"] = torch.empty(
            found.shape, dtype=getattr(torch, found.dtype), device="meta"
        )
        self.node_of[value], self.value_of[node] = node, value

    def _add(self, node: Node, prices: Prices) -> None:
        section = self.forward if node.phase == "forward" else self.backward
        operands = tuple(self.node_of[v] for v in node.operands)
        made = self.graph.call_function(_target(node), operands)
        self.seconds[made.name] = prices.seconds.get(node.index, 0.0)
        section.append(made)
        if len(node.results) == 1:
            if node.results[0] is not None:
                self._is(node.results[0], made)
            return
        made.meta["val"] = tuple(
            torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            for shape, dtype in zip(node.result_shapes, node.result_dtypes, strict=True)
        )
        for place, value in enumerate(node.results):
            if value is not None:
                part = self.graph.call_function(operator.getitem, (made, place))
                self._is(value, part)
                section.append(part)

    def _distances(self) -> None:
        """How far every node of forward is from backward, as the partitioner counts."""
        forward = {*self.forward, *(n for n in self.graph.nodes if n.op == "placeholder")}
        for node in reversed(self.graph.nodes):
            node.dist_from_bw = 0 if node in {*self.backward} else int(1e9)
            if node in forward:
                for user in node.users:
                    node.dist_from_bw = min(node.dist_from_bw, user.dist_from_bw + 1)

    def info(self) -> torchs.NodeInfo:
        inputs = [n for n in self.graph.nodes if n.op == "placeholder"]
        parameters = [n for n in inputs if self.value_of[n] in self.model.formats]
        forward = [*inputs, *self.forward]
        return torchs.NodeInfo(
            inputs,
            OrderedSet(forward),
            OrderedSet(self.backward),
            OrderedSet(self.backward),
            OrderedSet(),
            {node: number for number, node in enumerate(forward)},
            OrderedSet(parameters),
        )

    def saved(self, budget: float, solver: str) -> set[int]:
        """The root values that torch's partitioner keeps."""
        with config.patch(
            activation_memory_budget_solver=solver,
            activation_memory_budget_runtime_estimator=Estimator(self.seconds),
        ):
            found = torchs.choose_saved_values_set(self.graph, self.info(), budget)
        return {self.model.roots[self.value_of[n]].value for n in found if n in self.value_of}


def _target(node: Node) -> Any:
    if node.op in _ALIKE:
        return _ALIKE[node.op]
    if not node.op.startswith("aten."):
        return torch.ops.aten.clone.default
    _, packet, overload = node.op.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)
