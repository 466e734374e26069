"""A lower bound on the step of every plan: a problem in which each cost is at most what the
simulator charges for it (`least`).

Tables of the meshes searched -> seconds. The least cost of a mesh's problem bounds the simulated
step of every choice on it. Nodes and edges are the table's. A bias that may be joined to its
product costs nothing; nor do values that are only reported, or kept from forward to backward.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from cost_models.memory import dtype_bytes
from cost_models.roofline import host_time
from planner.dims.roots import is_view
from planner.graph.layout import Layout
from planner.lowering.early import SMALL, starts_beside_backward
from planner.search.least import Least, Sent, weights_of
from planner.solver.exact.ilp import solve
from planner.solver.problem.problem import Array, Choice, Edge, Problem
from planner.strategy.cost_table import CostTable, Layouts
from planner.strategy.costing import Costing
from planner.strategy.strategies import SECOND
from planner.strategy.traced_model import Model, Use

__all__ = ["GOOD", "MeshBound", "bound_problem", "bounded", "bounded_meshes"]

#: A bound within this share of the step is not raised further.
GOOD = 0.01


def bound_problem(table: CostTable, least: Least) -> Problem:
    """The bounding problem, on the table's nodes and edges."""
    return _Bound(table, least).problem()


class _Bound:
    def __init__(self, table: CostTable, least: Least) -> None:
        self.table, self.model, self.least = table, table.model, least
        self.pairs: dict[tuple[int, int], Array] = {}
        self.costs: list[Array] = [
            np.where(np.isfinite(cost + table.overlappable_costs.get(n, 0.0)), 0.0, np.inf)
            for n, cost in enumerate(table.costs)
        ]

    def problem(self) -> Problem:
        """The bounding problem, node by node and edge by edge."""
        self._ops()
        self._parameters()
        for (_, phase, _), alike in self.table.readings.groups.items():
            self._changes(phase, alike)
        edges = tuple(
            # what only second runs read costs nothing here
            Edge(u=u, v=v, cost=self.pairs.get((u, v), self.table.forbidden((u, v))))
            for u, v in self.table.edges
        )
        horizon = len(self.model.graph.nodes) + 1
        return Problem(
            costs=tuple(self.costs), edges=edges, horizon=horizon, names=self.table.names
        )

    # -------------------------------------------------------------------------------------- compute

    def _ops(self) -> None:
        graph, dims, costing = self.model.graph, self.model.dims, self.least.costing
        for number, members in zip(self.table.node_of, self.model.ties.nodes_of, strict=True):
            if number is None:
                continue
            joined = self.model.may_be_joined
            counted = [member for member in members if member not in joined]
            times = sum(self.model.runs[member] for member in counted)
            again = sum(self.model.runs[m] for m in counted if m in self.table.readings.runs_at)
            node = graph.nodes[members[0]]
            seconds = [
                costing.ops.simulated(node, dims.ops[node.index], s)
                * (times + again if s.mode in SECOND else times)
                for s in self.table.strategies[number]
            ]
            self.costs[number] += self.least.compute * np.array(seconds)

    def _parameters(self) -> None:
        """Adds every update, the gathers of parameters that are updated in pieces and kept whole,
        and the host's time per step."""
        costing, share = self.least.costing, self.least.compute
        for number, members in zip(
            self.table.parameter_of, self.model.ties.parameters_of, strict=True
        ):
            value = self.model.graph.values[self.model.graph.parameters[members[0]].value]
            flat, itemsize = self.model.dims.flat(value.id), dtype_bytes(value.dtype)
            layouts = self.least.layouts(flat, itemsize, "gathered")
            for index, strategy in enumerate(self.table.parameter_strategies[number]):
                seconds = share * costing.updates.update(flat, itemsize, value.dtype, strategy)
                self.costs[number][index] += len(members) * (
                    seconds + layouts.cost(strategy.updated, strategy.stored)
                )
        self.costs[0] += share * (
            costing.updates.step_overhead() + costing.ops.view() * self.model.num_views
        )

    # -------------------------------------------------------------------------------- communication

    def _changes(self, phase: str, alike: list[tuple[int, str, list[Use]]]) -> None:
        """Adds the changes of layout of values that are alike; only those that training needs, and
        none for second runs, which may share those of others."""
        value, _, every = alike[0]
        uses = [use for use in every if not use.again]
        if not uses:
            return
        produced = self.table.produced(value)
        assert produced is not None
        # For each reading, how often a step makes it.
        counts = Counter(
            tuple(self._times(v, use) for use in of if not use.again) for v, _, of in alike
        )
        # Backward keeps a layout that forward has made.
        if phase == "backward" and self._is_small(value):
            counts = Counter({tuple(0 for _ in uses): len(alike)})
        hub = self.table.hub_of.get((value, phase))
        if hub is None:
            self._edge(
                value,
                phase,
                produced,
                self.table.consumed(uses[0]),
                sum(n * c for (c,), n in counts.items()),
            )
            return
        at_hub = (hub, list(self.table.hub_layouts[hub]))
        self._edge(value, phase, produced, at_hub, sum(n * max(c) for c, n in counts.items()))
        for place, use in enumerate(uses):
            shares = (
                n * c[place] / _sharing(sum(map(bool, c)), also=len(every) > len(uses))
                for c, n in counts.items()
            )
            self._edge(value, phase, at_hub, self.table.consumed(use), sum(shares))

    def _edge(
        self,
        value: int,
        phase: str,
        before: tuple[int, Layouts],
        after: tuple[int, Layouts],
        times: float,
    ) -> None:
        (u, left), (v, right) = before, after
        cost = (
            self._change(value, phase, left, right) * times
            if times
            else np.zeros((len(left), len(right)))
        )
        if u == v:
            self.costs[u] += np.diagonal(cost)
            return
        key, table = ((u, v), cost) if u < v else ((v, u), cost.T)
        if key not in self.pairs:
            self.pairs[key] = self.table.forbidden(key)
        self.pairs[key] = self.pairs[key] + table

    def _change(self, value: int, phase: str, before: Layouts, after: Layouts) -> Array:
        itemsize = dtype_bytes(self.model.graph.values[value].dtype)
        cost = self.least.layouts(
            self.model.dims.flat(value), itemsize, self._sent(value, phase)
        ).cost_table(_known(before), _known(after))
        # The table has already forbidden the impossible changes.
        return np.where(np.isfinite(cost), cost, 0.0)

    def _sent(self, value: int, phase: str) -> Sent:
        """The cheapest way in which a value may be sent. In backward all count as beside compute: a
        value that forward wrote is waited for only once."""
        if phase == "update":
            return "reduced"
        if value in self.model.formats:
            return "gathered"
        overlaps = self.least.costing.cluster.device.overlap > 0
        return "beside" if overlaps and starts_beside_backward(phase, phase) else "waited"

    def _times(self, value: int, use: Use) -> int:
        """How often a step reads a value in a use; 0 if training does not need it: then it is sent
        along with a gradient's message."""
        needed = use.node is None or use.node in self.model.trained_by
        return self.model.readings(value, use) if needed else 0

    def _is_small(self, value: int) -> bool:
        found = self.model.graph.values[value]
        return value not in self.model.formats and found.numel * dtype_bytes(found.dtype) <= SMALL


def _known(layouts: Layouts) -> list[Layout]:
    """The layouts of a value that no second run reads alone: none is missing."""
    known = [x for x in layouts if x is not None]
    assert len(known) == len(layouts)
    return known


def _sharing(readers: int, *, also: bool) -> int:
    """The most readers that may share one redistribution from their hub: if all of them did, the
    hub itself would have that layout, unless second runs read the value `also`."""
    return max(1, readers - (0 if also else 1))


# --------------------------------------------------------------------------------------- the search


class MeshBound:
    """The best `bound` of one mesh so far, the `weights` that gave it (at first those that usually
    do), and those that may raise it."""

    def __init__(self, table: CostTable, guess: Choice) -> None:
        self.table, self.guess, self.left = table, guess, list(weights_of(table.costing))
        self.bound, self.weights = _host_seconds(table.model, table.costing), self.left[0]

    def raised(self, time_limit: float) -> None:
        """Raises the bound by solving the problem of the next weights."""
        weights = self.left.pop(0)
        least = Least(self.table.model, self.table.costing, weights)
        solution = solve(bound_problem(self.table, least), guess=self.guess, time_limit=time_limit)
        self.guess = solution.choice or self.guess
        if solution.bound > self.bound:
            self.bound, self.weights = solution.bound, weights


def _host_seconds(model: Model, costing: Costing) -> float:
    """Seconds that the host takes per step to dispatch all ops and the update, one after the other,
    under any choice."""
    device, dims = costing.cluster.device, model.dims
    nodes = (
        n.index
        for n in model.graph.nodes
        if n.index not in model.may_be_joined and not is_view(dims, n.index)
    )
    ops = sum(host_time(device, dims.ops[n].signature.kind) * model.runs[n] for n in nodes)
    return ops + host_time(device, "optimizer")


def bounded(
    tables: Sequence[tuple[CostTable, Choice]],
    step: float,
    seconds: Callable[[], float] = lambda: math.inf,
) -> float:
    """A lower bound, in seconds, on the simulated step of every choice on the tables' meshes, as by
    `bounded_meshes`."""
    return min(mesh.bound for mesh in bounded_meshes(tables, step, seconds))


def bounded_meshes(
    tables: Sequence[tuple[CostTable, Choice]],
    step: float,
    seconds: Callable[[], float] = lambda: math.inf,
) -> list[MeshBound]:
    """A lower bound on the simulated step of every choice of each table. Each comes with a choice
    that may be good. The mesh with the lowest bound is raised until it is within `GOOD` of the
    plan's `step`. `seconds()` is the time that the next problem may take."""
    meshes = [MeshBound(table, guess) for table, guess in tables]
    for mesh in meshes:
        mesh.raised(seconds())
    while True:
        lowest = min(meshes, key=lambda mesh: mesh.bound)
        if lowest.bound >= step * (1 - GOOD) or not lowest.left:
            return meshes
        lowest.raised(seconds())
