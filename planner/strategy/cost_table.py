"""The cost table: the cost of every choice, for the graph on one mesh.

Graph, sub-dims, ties, costs -> CostTable. A problem node is a class of tied ops, a class of tied
parameters, or a *hub*: a value that several ops of a phase read first gets one layout, so that a
redistribution that they share is paid once. Invariant: the objective of a choice equals the one
that `recost` computes by walking the whole, untied graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from planner.graph.layout import Layout
from planner.solver.problem.problem import Array
from planner.strategy.costing import Costing
from planner.strategy.strategies import ParameterStrategy, Strategy
from planner.strategy.traced_model import Model, Use

__all__ = ["CostTable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """The costs, and the numbers of the problem's nodes: `node_of[c]` for a class of ops (None for
    views), `parameter_of[c]` for a class of parameters, `hub_of[root value, phase]` for hubs.
    `strategies[n]` (or the like) are the choices of problem node n. `modes` are those that pins
    decide on, by node of a model."""

    model: Model
    costing: Costing
    node_of: tuple[int | None, ...]
    parameter_of: tuple[int, ...]
    hub_of: dict[tuple[int, str], int]
    strategies: dict[int, tuple[Strategy, ...]]
    parameter_strategies: dict[int, tuple[ParameterStrategy, ...]]
    hub_layouts: dict[int, tuple[Layout, ...]]
    costs: tuple[Array, ...]
    overlappable_costs: dict[int, Array]
    pairs: dict[tuple[int, int], Array]
    overlappable_pairs: dict[tuple[int, int], Array]
    names: tuple[str, ...]
    modes: Callable[[Model], Mapping[int, str]] = lambda model: {}

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """The pairs of problem nodes with a cost between them, in the problem's order."""
        return tuple(dict.fromkeys([*self.pairs, *self.overlappable_pairs]))

    def forbidden(self, edge: tuple[int, int]) -> Array:
        """Infinite for pairs of choices that are impossible, else 0."""
        known = [table[edge] for table in (self.pairs, self.overlappable_pairs) if edge in table]
        return np.where(np.all([np.isfinite(table) for table in known], axis=0), 0.0, np.inf)

    def produced(self, value: int) -> tuple[int, list[Layout]] | None:
        """The problem node that writes a root value, and the layout in which each of its choices
        leaves it; None for inputs."""
        found = self.model.graph.values[value]
        if found.kind == "parameter":
            index = self.parameter_of[
                self.model.ties.parameter_class[self.model.parameter_index[value]]
            ]
            return index, [s.stored for s in self.parameter_strategies[index]]
        if found.writer is None:
            return None
        writer = self.node_of[self.model.ties.node_class[found.writer]]
        assert writer is not None
        place = self.model.graph.nodes[found.writer].results.index(value)
        return writer, [s.results[place] for s in self.strategies[writer]]

    def consumed(self, use: Use) -> tuple[int, list[Layout]]:
        """The problem node of a use, and the root's layout in which each of its choices reads."""
        if use.parameter is not None:
            index = self.parameter_of[self.model.ties.parameter_class[use.parameter]]
            return index, use.root.layouts(s.updated for s in self.parameter_strategies[index])
        assert use.node is not None
        found = self.node_of[self.model.ties.node_class[use.node]]
        assert found is not None
        return found, use.root.layouts(s.operands[use.position] for s in self.strategies[found])
