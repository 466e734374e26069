"""Fills a `CostTable`: the cost of every op, parameter and change of layout on one mesh, by class.

Model, costs, pins -> CostTable.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cost_models.memory import dtype_bytes
from planner.dims.roots import is_view
from planner.graph.layout import REPLICATE, Layout, is_split
from planner.solver.problem.problem import Array
from planner.strategy.allowed_strategies import AllowedStrategies
from planner.strategy.cost_table import CostTable, Layouts
from planner.strategy.costing import Costing
from planner.strategy.recompute import Recompute, readings_in
from planner.strategy.redistribute import Layouts as LayoutCosts
from planner.strategy.strategies import KEPT, SECOND, ParameterStrategy, Strategy
from planner.strategy.traced_model import Model, Pins, Use

__all__ = ["TooLarge", "build_cost_table"]


class TooLarge(Exception):
    """The table has more pairs of strategies than allowed."""


def build_cost_table(
    model: Model,
    costing: Costing,
    pins: Pins,
    *,
    most_pairs: float = float("inf"),
    recompute: Recompute | None = None,
    free: bool = True,
) -> CostTable:
    """The costs of `model` under `costing`'s mesh, with the options that `pins` leave and, if
    `recompute` is given, the modes that it has for each of them; unless `free`, only those that
    pins decide on. Raises TooLarge if there are more than `most_pairs` pairs of strategies."""
    return _Builder(model, costing, pins, most_pairs, recompute, free).table()


@dataclass(frozen=True, slots=True)
class _Reading:
    """A value that is read in a phase: it goes from the layouts in which one problem node's choices
    leave it to those in which another's read it. `times` is how often a step does so, for all values
    that are alike."""

    value: int
    phase: str
    before: tuple[int, Layouts]
    after: tuple[int, Layouts]
    times: int


class _Builder:
    """Collects nodes and edges, class by class, into a `CostTable`."""

    def __init__(
        self,
        model: Model,
        costing: Costing,
        pins: Pins,
        most_pairs: float,
        recompute: Recompute | None,
        free: bool,
    ) -> None:
        self.model, self.costing, self.most_pairs = model, costing, most_pairs
        self.recompute, self.free = recompute, free
        self.allowed = AllowedStrategies(model, costing.sizes, pins)
        self.modes, self.again = pins.modes, pins.again
        self.costs: list[Array] = []
        self.names: list[str] = []
        self.strategies: dict[int, tuple[Strategy, ...]] = {}
        self.parameter_strategies: dict[int, tuple[ParameterStrategy, ...]] = {}
        self.hub_layouts: dict[int, tuple[Layout | None, ...]] = {}
        self.hub_of: dict[tuple[int, str], int] = {}
        self.casts: set[int] = set()
        self.overlappable_costs: dict[int, Array] = {}
        self.pairs: dict[tuple[int, int], Array] = {}
        self.overlappable_pairs: dict[tuple[int, int], Array] = {}

    def table(self) -> CostTable:
        """The whole table."""
        node_of, parameter_of = self._ops(), self._parameters()
        table = CostTable(
            model=self.model,
            readings=readings_in(self.model),
            costing=self.costing,
            node_of=node_of,
            parameter_of=parameter_of,
            hub_of=self.hub_of,
            strategies=self.strategies,
            parameter_strategies=self.parameter_strategies,
            hub_layouts=self.hub_layouts,
            costs=(),
            overlappable_costs=self.overlappable_costs,
            pairs=self.pairs,
            overlappable_pairs=self.overlappable_pairs,
            names=(),
            modes=self.modes,
        )
        if self.recompute is not None:
            table = replace(table, readings=self.recompute.readings(table.may_run_again))
        self._connect(table)
        return replace(table, costs=tuple(self.costs), names=tuple(self.names))

    # ---------------------------------------------------------------------------------------- nodes

    def _node(self, name: str, costs: Array) -> int:
        self.costs.append(costs)
        self.names.append(name)
        return len(self.costs) - 1

    def _ops(self) -> tuple[int | None, ...]:
        graph, dims = self.model.graph, self.model.dims
        out: list[int | None] = []
        for members in self.model.ties.nodes_of:
            node = graph.nodes[members[0]]
            if is_view(dims, node.index):
                out.append(None)
                continue
            found = self.allowed.of_ops([graph.nodes[m] for m in members])
            cost = np.array(
                [self.costing.ops.cost(node, dims.ops[node.index], s) for s in found]
            ) * sum(self.model.runs[m] for m in members)
            found, cost = self._with_modes(members, found, cost)
            out.append(self._node(f"{node.phase}:{node.path}:{node.op}", cost))
            self.strategies[len(self.costs) - 1] = found
            if self.model.shortens(node):
                self.casts.add(len(self.costs) - 1)
        return tuple(out)

    def _with_modes(
        self, members: tuple[int, ...], strategies: tuple[Strategy, ...], cost: Array
    ) -> tuple[tuple[Strategy, ...], Array]:
        """The strategies of a class in each of its modes, and their costs: those of running again
        as often as a member would."""
        if self.recompute is None:
            return strategies, cost
        modes = self.recompute.modes_left(
            members, self.again, self.modes(self.model), free=self.free
        )
        runs = self.model.runs
        may = [member for member in members if member in self.recompute.runs_at]
        again = sum(runs[m] for m in may) / (sum(runs[m] for m in members) or 1)
        return (
            tuple(s if s.mode == m else replace(s, mode=m) for m in modes for s in strategies),
            np.concatenate([cost * (1.0 + again) if m in SECOND else cost for m in modes]),
        )

    def _parameters(self) -> tuple[int, ...]:
        graph, dims = self.model.graph, self.model.dims
        out = []
        for members in self.model.ties.parameters_of:
            tied = [graph.parameters[m] for m in members]
            value = graph.values[tied[0].value]
            flat = dims.flat(value.id)
            found = self.allowed.of_parameters(tied)
            given = [(flat, dtype_bytes(value.dtype), value.dtype, s) for s in found]
            cost = [
                self.costing.updates.update(*one) + self.costing.updates.ready(*one)
                for one in given
            ]
            out.append(self._node(f"parameter:{tied[0].name}", np.array(cost) * len(members)))
            self.parameter_strategies[out[-1]] = found
            gathers = np.array(
                [self.costing.updates.gather(flat, dtype_bytes(value.dtype), s) for s in found]
            ) * len(members)
            if gathers.any():
                self.overlappable_costs[out[-1]] = gathers
        return tuple(out)

    # ---------------------------------------------------------------------------------------- edges

    def _connect(self, table: CostTable) -> None:
        """Adds the edges. Readings that are alike are priced once, and counted as often as they
        occur. All are listed before the first is priced, so that a table that is too large is
        refused by its sizes alone."""
        readings = [
            reading
            for alike in table.readings.groups.values()
            for reading in self._readings(table, alike)
        ]
        if (
            sum(len(r.before[1]) * len(r.after[1]) for r in readings if r.before[0] != r.after[0])
            > self.most_pairs
        ):
            raise TooLarge
        for reading in readings:
            self._edge(reading)
        self._views(table)
        self._loss(table)

    def _readings(
        self, table: CostTable, alike: list[tuple[int, str, list[Use]]]
    ) -> list[_Reading]:
        """The readings of a value in a phase: by its only reader, or by a hub and from there by its
        readers."""
        value, phase, uses = alike[0]
        produced = table.produced(value, phase)
        assert produced is not None
        consumed = [table.consumed(use) for use in uses]
        often = [[self.model.readings(v, use) for use in of] for v, _, of in alike]
        times = sum(map(max, often))
        if len(uses) == 1:
            return [_Reading(value, phase, produced, consumed[0], times)]
        layouts = self._layouts(value, phase)
        wanted = dict.fromkeys(
            [*produced[1], *(layout for _, after in consumed for layout in after)]
        )
        states: Layouts
        states = [x for x in wanted if x in layouts.index]
        if all(use.again for use in uses):
            states.append(None)
        hub = self._node(
            f"hub:{phase}:{self.model.graph.values[value].name}", np.zeros(len(states))
        )
        self.hub_layouts[hub] = tuple(states)
        self.hub_of.update({(v, p): hub for v, p, _ in alike})
        first = _Reading(value, phase, produced, (hub, states), times)
        return [
            first,
            *(
                _Reading(value, phase, (hub, states), read, sum(of))
                for read, of in zip(consumed, zip(*often, strict=True), strict=True)
            ),
        ]

    def _edge(self, reading: _Reading) -> None:
        """Adds the cost of changing a value's layout from those of one node's choices to those of
        another's."""
        value, phase = reading.value, reading.phase
        (u, before), (v, after) = reading.before, reading.after
        cost = self._conversion(value, phase, before, after) * reading.times
        if self._casts(v, value):
            cost[_gathered(before, after)] = np.inf
        overlappable = phase == "update" or value in self.model.formats
        if u == v:
            diagonal = np.diagonal(cost)
            if overlappable:
                self.overlappable_costs[u] = self.overlappable_costs.get(u, 0.0) + diagonal
            else:
                self.costs[u] = self.costs[u] + diagonal
            return
        self._add(u, v, cost, self.overlappable_pairs if overlappable else self.pairs)

    def _add(self, u: int, v: int, cost: Array, pairs: dict[tuple[int, int], Array]) -> None:
        key, table = ((u, v), cost) if u < v else ((v, u), cost.T)
        pairs[key] = pairs[key] + table if key in pairs else table.copy()

    def _casts(self, reader: int, value: int) -> bool:
        """Whether a problem node casts a parameter to a shorter format: then its pieces are cast
        before they are gathered."""
        return value in self.model.formats and reader in self.casts

    def _layouts(self, value: int, phase: str) -> LayoutCosts:
        itemsize = dtype_bytes(self.model.graph.values[value].dtype)
        flat = self.model.dims.flat(value)
        return self.costing.messages.layouts(flat, itemsize, phase)

    def _conversion(self, value: int, phase: str, before: Layouts, after: Layouts) -> Array:
        """Seconds from each layout to each. What does not read costs nothing, and what reads needs
        a value that was left."""
        cost = np.full((len(before), len(after)), np.inf)
        left, read = (
            [i for i, layout in enumerate(of) if layout is not None] for of in (before, after)
        )
        cost[:, [i for i, layout in enumerate(after) if layout is None]] = 0.0
        cost[np.ix_(left, read)] = self._changes(
            value, phase, [x for x in before if x is not None], [x for x in after if x is not None]
        )
        return cost

    def _changes(self, value: int, phase: str, before: list[Layout], after: list[Layout]) -> Array:
        if self._is_opaque(value) or value in self.model.cast_gradients:
            return np.where([[a == b for b in after] for a in before], 0.0, np.inf)
        return self._layouts(value, phase).cost_table(before, after)

    def _views(self, table: CostTable) -> None:
        """Forbids that an op that returns a view of its operand is kept, for backward, if the
        operand is not."""
        for number, members in zip(table.node_of, self.model.ties.nodes_of, strict=True):
            node = self.model.graph.nodes[members[0]]
            under = self.model.roots[node.operands[0]].value if node.operands else -1
            if (
                number is None
                or node.index not in table.readings.runs_at
                or self.model.dims.ops[node.index].signature.kind != "view"
                or self.model.graph.values[under].writer is None
            ):
                continue
            produced = table.produced(under)
            assert produced is not None
            if table.may_cross(produced[0]):
                continue
            kept = [s.mode == KEPT for s in self.strategies[number]]
            held = [s.mode == KEPT for s in self.strategies[produced[0]]]
            cost = np.where(np.outer(np.logical_not(held), kept), np.inf, 0.0)
            self._add(produced[0], number, cost, self.pairs)

    def _is_opaque(self, value: int) -> bool:
        writer = self.model.graph.values[value].writer
        if writer is None:
            return False
        place = self.model.graph.nodes[writer].results.index(value)
        return place in self.model.dims.ops[writer].signature.opaque

    def _loss(self, table: CostTable) -> None:
        """Adds the cost of reducing the loss, which every device of its stage returns."""
        if self.model.graph.loss is None:
            return
        root = self.model.roots[self.model.graph.loss]
        produced = table.produced(root.value)
        assert produced is not None
        whole = tuple(REPLICATE for _ in self.costing.sizes)
        cost = self._conversion(root.value, "forward", produced[1], [whole])
        self.costs[produced[0]] = self.costs[produced[0]] + cost[:, 0]


def _gathered(before: Layouts, after: Layouts) -> Array:
    """Which pairs of layouts take a gather: a sub-dim split by an axis before is not so after."""
    return np.array([[_is_gather(b, a) for a in after] for b in before])


def _is_gather(before: Layout | None, after: Layout | None) -> bool:
    if before is None or after is None:
        return False
    return any(is_split(x) and x != y for x, y in zip(before, after, strict=True))
