"""The cost table: the graph on one mesh as a strategy-selection `Problem`.

Graph, sub-dims, ties, costs -> Table. A problem node is a class of tied ops, a class of tied parameters, or a *hub*: the one
layout to which a value that several ops of a phase read is brought first, so that a redistribution they share is paid once.
Invariant: the objective of a choice is what `recost` finds by walking the whole, untied graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cost_models.errors import NoPlan
from cost_models.memory import dtype_bytes
from planner.costing import Costing, local_numel
from planner.graph import Graph, Node, Parameter
from planner.layout import REPLICATE, Layout, is_partial
from planner.redistribute import Layouts, layouts_of
from planner.solver import Edge, Problem, Usage
from planner.solver.problem import Array
from planner.strategies import Option, ParameterStrategy, Strategy, op_strategies, parameter_strategies
from planner.subdims import SubDims
from planner.ties import Ties
from planner.views import Root, is_view

__all__ = ["Model", "Pins", "Table", "Use", "build_table", "uses_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A traced model as every mesh sees it: computed once, shared by all tables."""

    graph: Graph
    dims: SubDims
    ties: Ties
    roots: tuple[Root, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """Which options a person allows: of node n on axis a, and of parameter p on axis a."""

    op: Callable[[Node, int, Option], bool] = lambda node, axis, option: True
    parameter: Callable[[Parameter, int, Option], bool] = lambda parameter, axis, option: True


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One reading of a root value: by operand `position` of graph node `node`, or as the gradient of parameter `parameter`."""

    root: Root
    phase: str
    node: int | None = None
    position: int = 0
    parameter: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The problem, and what its nodes are: `node_of[c]` for a class of ops (None for views), `parameter_of[c]` for a class of
    parameters, `hub_of[root value, phase]` for hubs. `choices[n]` lists what problem node n chooses from."""

    model: Model
    costing: Costing
    problem: Problem
    node_of: tuple[int | None, ...]
    parameter_of: tuple[int, ...]
    hub_of: dict[tuple[int, str], int]
    strategies: dict[int, tuple[Strategy, ...]]
    parameter_strategies: dict[int, tuple[ParameterStrategy, ...]]
    hub_layouts: dict[int, tuple[Layout, ...]]


def uses_of(model: Model) -> dict[tuple[int, str], list[Use]]:
    """All readings of root values that a node writes or a parameter holds, by (root value, phase), in order."""
    graph, roots = model.graph, model.roots
    found: dict[tuple[int, str], list[Use]] = defaultdict(list)
    for node in graph.nodes:
        if is_view(model.dims, node.index):
            continue
        for position, value in enumerate(node.operands):
            root = roots[value]
            found[root.value, node.phase].append(Use(root=root, phase=node.phase, node=node.index, position=position))
    for index, parameter in enumerate(graph.parameters):
        root = roots[parameter.gradient]
        found[root.value, "update"].append(Use(root=root, phase="update", parameter=index))
    return dict(found)


def build_table(model: Model, costing: Costing, pins: Pins, *, hidden: float = 0.0, limit: float = float("inf")) -> Table:
    """The problem of `model` under `costing`'s mesh. `hidden` is the share of parameters' and gradients' communication that runs
    beside compute and is left out of the objective; `limit` the bytes a device has."""
    return _Builder(model, costing, pins, hidden, limit).table()


class _Builder:
    """Collects nodes, edges and usages, then makes the `Table`."""

    def __init__(self, model: Model, costing: Costing, pins: Pins, hidden: float, limit: float) -> None:
        self.model, self.costing, self.pins, self.limit = model, costing, pins, limit
        self.shown = 1.0 - hidden
        self.horizon = len(model.graph.nodes) + 1
        self.costs: list[Array] = []
        self.names: list[str] = []
        self.strategies: dict[int, tuple[Strategy, ...]] = {}
        self.parameter_strategies: dict[int, tuple[ParameterStrategy, ...]] = {}
        self.hub_layouts: dict[int, tuple[Layout, ...]] = {}
        self.hub_of: dict[tuple[int, str], int] = {}
        self.hubs: dict[object, int] = {}
        self.pairs: dict[tuple[int, int], Array] = {}
        self.node_profiles: dict[tuple[int, object], tuple[Array, Array]] = {}
        self.edge_profiles: dict[tuple[int, int, object], tuple[Array, Array]] = {}
        self.blocking: dict[tuple[tuple[int, ...], int], Layouts] = {}
        self.bucketed: dict[tuple[tuple[int, ...], int], Layouts] = {}

    # ---------------------------------------------------------------------------------------------- nodes

    def _node(self, name: str, costs: Array) -> int:
        self.costs.append(costs)
        self.names.append(name)
        return len(self.costs) - 1

    def _ops(self) -> tuple[int | None, ...]:
        graph, dims, costing = self.model.graph, self.model.dims, self.costing
        out: list[int | None] = []
        for members in self.model.ties.nodes_of:
            node = graph.nodes[members[0]]
            if is_view(dims, node.index):
                out.append(None)
                continue
            nodes = [graph.nodes[m] for m in members]
            found = op_strategies(
                dims.ops[node.index],
                costing.sizes,
                lambda a, o, nodes=nodes: all(self.pins.op(n, a, o) for n in nodes),  # type: ignore[misc]
            )
            found = tuple(s for s in found if self._reads_inputs_whole(node, s))
            if not found:
                raise NoPlan(f"no strategy is left for {node.op} in {node.path or 'the model'!r} under these pins: loosen one")
            cost = np.array([costing.op(node, dims.ops[node.index], s) for s in found]) * len(members)
            out.append(self._node(f"{node.phase}:{node.path}:{node.op}", cost))
            self.strategies[len(self.costs) - 1] = found
        return tuple(out)

    def _reads_inputs_whole(self, node: Node, strategy: Strategy) -> bool:
        """Inputs and buffers come whole or in pieces, never as partial sums."""
        for value, layout in zip(node.operands, strategy.operands, strict=True):
            root = self.model.graph.values[self.model.roots[value].value]
            if root.kind in ("input", "buffer") and any(map(is_partial, layout)):
                return False
        return True

    def _parameters(self) -> tuple[int, ...]:
        graph, dims = self.model.graph, self.model.dims
        out = []
        for members in self.model.ties.parameters_of:
            parameter = graph.parameters[members[0]]
            value = graph.values[parameter.value]
            flat, itemsize = self._flat(value.id), dtype_bytes(value.dtype)
            tied = [graph.parameters[m] for m in members]
            found = parameter_strategies(
                flat,
                self.costing.sizes,
                lambda a, o, tied=tied: all(self.pins.parameter(p, a, o) for p in tied),  # type: ignore[misc]
            )
            if not found:
                raise NoPlan(f"no way to store parameter {parameter.name!r} is left under these pins: loosen one")
            cost = np.array([self.costing.update(flat, itemsize, value.dtype, s) for s in found]) * len(members)
            index = self._node(f"parameter:{parameter.name}", cost)
            self.parameter_strategies[index] = found
            held = [sum(self.costing.parameter_bytes(flat, itemsize, value.dtype, s).values()) for s in found]
            self._hold(index, "state", np.array(held, dtype=float), 0, self.horizon, len(members))
            out.append(index)
        del dims
        return tuple(out)

    # ---------------------------------------------------------------------------------------------- layouts

    def _flat(self, value: int) -> tuple[int, ...]:
        return tuple(size for dim in self.model.dims.shapes[value] for size in dim)

    def _layouts(self, value: int, phase: str) -> Layouts:
        itemsize = dtype_bytes(self.model.graph.values[value].dtype)
        cache, time = (
            (self.bucketed, self.costing.bucketed) if phase == "update" else (self.blocking, self.costing.communication)
        )
        return layouts_of(cache, self._flat(value), itemsize, self.costing.sizes, time)

    def _produced(self, value: int) -> tuple[int, list[Layout]] | None:
        """The problem node that writes a root value, and the layouts in which its choices leave it; None for inputs."""
        found = self.model.graph.values[value]
        if found.kind == "parameter":
            number = next(i for i, p in enumerate(self.model.graph.parameters) if p.value == value)
            index = self.parameter_of[self.model.ties.parameter_class[number]]
            return index, [s.stored for s in self.parameter_strategies[index]]
        if found.writer is None:
            return None
        index_or_none = self.node_of[self.model.ties.node_class[found.writer]]
        assert index_or_none is not None
        place = self.model.graph.nodes[found.writer].results.index(value)
        return index_or_none, [s.results[place] for s in self.strategies[index_or_none]]

    def _consumed(self, use: Use) -> tuple[int, list[Layout]]:
        """The problem node of a use, and the root layouts in which its choices read."""
        if use.parameter is not None:
            index = self.parameter_of[self.model.ties.parameter_class[use.parameter]]
            return index, [use.root.layout(s.updated) for s in self.parameter_strategies[index]]
        assert use.node is not None
        found = self.node_of[self.model.ties.node_class[use.node]]
        assert found is not None
        return found, [use.root.layout(s.operands[use.position]) for s in self.strategies[found]]

    # ---------------------------------------------------------------------------------------------- edges

    def _pair(self, u: int, v: int, cost: Array) -> None:
        if u == v:
            self.costs[u] = self.costs[u] + np.diagonal(cost)
            return
        key, table = ((u, v), cost) if u < v else ((v, u), cost.T)
        self.pairs[key] = self.pairs[key] + table if key in self.pairs else table.copy()

    def _conversion(self, value: int, phase: str, before: list[Layout], after: list[Layout]) -> Array:
        layouts = self._layouts(value, phase)
        table = layouts.cost_table(before, after)
        if self._is_opaque(value):
            return np.where([[a == b for b in after] for a in before], 0.0, np.inf)
        return table

    def _is_opaque(self, value: int) -> bool:
        writer = self.model.graph.values[value].writer
        if writer is None:
            return False
        place = self.model.graph.nodes[writer].results.index(value)
        return place in self.model.dims.ops[writer].signature.opaque

    def _hidden(self, value: int, phase: str) -> float:
        """What of a conversion's cost counts: parameters are gathered, and gradients reduced, beside compute."""
        return self.shown if phase == "update" or self.model.graph.values[value].kind == "parameter" else 1.0

    def _connect(self) -> None:
        groups = uses_of(self.model)
        for (value, phase), uses in groups.items():
            produced = self._produced(value)
            if produced is None:
                self._hold_input(value, uses)
            elif len(uses) == 1:
                self._direct(value, phase, produced, uses[0])
            else:
                self._hub(value, phase, produced, uses)
        for value in {value for value, _ in groups}:
            self._hold_value(value, [u for p in ("forward", "backward", "update") for u in groups.get((value, p), [])])
        self._loss()

    def _direct(self, value: int, phase: str, produced: tuple[int, list[Layout]], use: Use) -> None:
        consumer, after = self._consumed(use)
        producer, before = produced
        self._pair(producer, consumer, self._conversion(value, phase, before, after) * self._hidden(value, phase))
        if use.node is not None:
            self._hold_copy(value, phase, (producer, before), (consumer, after), use.node, use.node + 1)

    def _hub(self, value: int, phase: str, produced: tuple[int, list[Layout]], uses: list[Use]) -> None:
        producer, before = produced
        consumed = [self._consumed(use) for use in uses]
        key = (producer, tuple(before), phase, tuple((c, tuple(a)) for c, a in consumed))
        hub = self.hubs.get(key)
        if hub is None:
            wanted = dict.fromkeys([*before, *(layout for _, after in consumed for layout in after)])
            layouts = self._layouts(value, phase)
            states = tuple(x for x in wanted if x in layouts.index)
            hub = self.hubs[key] = self._node(f"hub:{phase}:{self.model.graph.values[value].name}", np.zeros(len(states)))
            self.hub_layouts[hub] = states
        self.hub_of[value, phase] = hub
        states_list = list(self.hub_layouts[hub])
        share = self._hidden(value, phase)
        self._pair(producer, hub, self._conversion(value, phase, before, states_list) * share)
        for consumer, after in consumed:
            self._pair(hub, consumer, self._conversion(value, phase, states_list, after) * share)
        times = [use.node for use in uses if use.node is not None]
        if times:
            self._hold_copy(value, phase, (producer, before), (hub, states_list), min(times), max(times) + 1)

    def _loss(self) -> None:
        """The loss is reduced: every device returns it."""
        root = self.model.roots[self.model.graph.loss]
        produced = self._produced(root.value)
        assert produced is not None
        whole = tuple(REPLICATE for _ in self.costing.sizes)
        cost = self._conversion(root.value, "forward", produced[1], [whole])
        self.costs[produced[0]] = self.costs[produced[0]] + cost[:, 0]

    # ---------------------------------------------------------------------------------------------- memory

    def _hold(self, node: int, key: object, nbytes: Array, start: int, end: int, times: int = 1) -> None:
        if (node, key) not in self.node_profiles:
            self.node_profiles[node, key] = (nbytes, np.zeros(self.horizon))
        self.node_profiles[node, key][1][start:end] += times

    def _bytes(self, value: int, layouts: list[Layout]) -> Array:
        flat, itemsize = self._flat(value), dtype_bytes(self.model.graph.values[value].dtype)
        return np.array([local_numel(flat, x, self.costing.sizes) * itemsize for x in layouts], dtype=float)

    def _hold_value(self, value: int, uses: list[Use]) -> None:
        """A value lives from its writer to its last reader; a gradient that has been reduced, until the update."""
        found = self.model.graph.values[value]
        produced = self._produced(value)
        if produced is None or found.writer is None:
            return
        last = max([use.node for use in uses if use.node is not None], default=found.writer)
        place = self.model.graph.nodes[found.writer].results.index(value)
        self._hold(produced[0], ("result", place), self._bytes(value, produced[1]), found.writer, last + 1)
        for use in uses:
            if use.parameter is not None:
                consumer, after = self._consumed(use)
                self._hold(consumer, "gradient", self._bytes(value, after), found.writer, self.horizon)

    def _hold_input(self, value: int, uses: list[Use]) -> None:
        consumer, after = self._consumed(uses[0])
        last = max(use.node for use in uses if use.node is not None)
        self._hold(consumer, ("input", value), self._bytes(value, after), 0, last + 1)

    def _hold_copy(
        self, value: int, phase: str, produced: tuple[int, list[Layout]], read: tuple[int, list[Layout]], start: int, end: int
    ) -> None:
        """What a conversion makes lives while it is read."""
        if self.limit == float("inf") or produced[0] == read[0]:
            return
        changed = np.array([[a != b for b in read[1]] for a in produced[1]], dtype=float)
        nbytes = changed * self._bytes(value, read[1])[None, :]
        u, v = produced[0], read[0]
        (u, v), nbytes = ((u, v), nbytes) if u < v else ((v, u), nbytes.T)
        key = (u, v, (phase, tuple(produced[1]), tuple(read[1])))
        if key not in self.edge_profiles:
            self.edge_profiles[key] = (nbytes, np.zeros(self.horizon))
        self.edge_profiles[key][1][start:end] += 1

    # ---------------------------------------------------------------------------------------------- the table

    def table(self) -> Table:
        self.node_of = self._ops()
        self.parameter_of = self._parameters()
        self._connect()
        keys = list(self.pairs)
        number = {key: i for i, key in enumerate(keys)}
        usages = [Usage(node=n, nbytes=nbytes, profile=profile) for (n, _), (nbytes, profile) in self.node_profiles.items()]
        usages += [
            Usage(edge=number[u, v], nbytes=nbytes, profile=profile)
            for (u, v, _), (nbytes, profile) in self.edge_profiles.items()
        ]
        problem = Problem(
            costs=tuple(self.costs), edges=tuple(Edge(u=u, v=v, cost=self.pairs[u, v]) for u, v in keys),
            usages=tuple(usages), horizon=self.horizon, limit=self.limit, names=tuple(self.names),
        )  # fmt: skip
        return Table(
            model=self.model, costing=self.costing, problem=problem, node_of=self.node_of, parameter_of=self.parameter_of,
            hub_of=self.hub_of, strategies=self.strategies, parameter_strategies=self.parameter_strategies,
            hub_layouts=self.hub_layouts,
        )  # fmt: skip
