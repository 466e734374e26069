"""The cost table: the cost of every choice, for the graph on one mesh.

Graph, sub-dims, ties, costs -> CostTable. A problem node is a class of tied ops, a class of tied
parameters, or a *hub*: a value that several ops of a phase read first gets one layout, so that a
redistribution that they share is paid once. Invariant: the objective of a choice equals the one
that `recost` computes by walking the whole, untied graph.

If ops may run again, a choice is a strategy with a mode. Then a layout may be `None`: a choice that
does not leave a value for backward, or one that does not read it there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from planner.graph.layout import Layout
from planner.solver.problem.problem import Array
from planner.strategy.costing import Costing
from planner.strategy.recompute import Readings
from planner.strategy.strategies import ACROSS, KEPT, MODES, SECOND, ParameterStrategy, Strategy
from planner.strategy.traced_model import Model, Use

__all__ = ["CostTable", "Layouts"]

#: A value's layout under each choice of a problem node; None if the choice has no part in it.
Layouts = list[Layout | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """The costs, and the numbers of the problem's nodes: `node_of[c]` for a class of ops (None for
    views), `parameter_of[c]` for a class of parameters, `hub_of[root value, phase]` for hubs.
    `strategies[n]` (or the like) are the choices of problem node n; one of a hub is None if no
    second run reads the value. `readings` are those of the ops and of their second runs. `modes`
    are those that pins decide on, by node of a model."""

    model: Model
    readings: Readings
    costing: Costing
    node_of: tuple[int | None, ...]
    parameter_of: tuple[int, ...]
    hub_of: dict[tuple[int, str], int]
    strategies: dict[int, tuple[Strategy, ...]]
    parameter_strategies: dict[int, tuple[ParameterStrategy, ...]]
    hub_layouts: dict[int, tuple[Layout | None, ...]]
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

    @property
    def may_run_again(self) -> frozenset[int]:
        """The classes of ops that may run again."""
        return frozenset(
            number
            for number, node in enumerate(self.node_of)
            if node is not None and any(s.mode in SECOND for s in self.strategies[node])
        )

    @property
    def has_choice_of_modes(self) -> bool:
        """Whether some op may run again, or not."""
        modes = ({s.mode for s in options} for options in self.strategies.values())
        return any(not some <= SECOND and not some.isdisjoint(SECOND) for some in modes)

    def forbidden(self, edge: tuple[int, int]) -> Array:
        """Infinite for pairs of choices that are impossible, else 0."""
        known = [table[edge] for table in (self.pairs, self.overlappable_pairs) if edge in table]
        return np.where(np.all([np.isfinite(table) for table in known], axis=0), 0.0, np.inf)

    def produced(self, value: int, phase: str = "forward") -> tuple[int, Layouts] | None:
        """The problem node that writes a root value, and the layout in which each of its choices
        leaves it to a phase; None for inputs. A result that may be made again across layers counts
        as left: whether it is depends on another layer, and tied ones may differ (`untied.py`)."""
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
        left = self.leaving(value) if phase == "backward" and not self.may_cross(writer) else None
        return writer, [
            s.results[place] if left is None or s.mode in left else None
            for s in self.strategies[writer]
        ]

    def may_cross(self, node: int) -> bool:
        """Whether the ops of a problem node may run again across layers."""
        return any(s.mode == ACROSS for s in self.strategies[node])

    def leaving(self, value: int) -> frozenset[str]:
        """The modes of its writer that leave a value to backward. If backward reads other results
        of that op, `kept` means those, unless the op cannot run again."""
        writer = self.model.graph.values[value].writer
        assert writer is not None
        if (value, "backward") in self.model.uses or not self.readings.runs_at:
            return frozenset(MODES)
        results = self.model.graph.nodes[writer].results
        others = any((-1 if v is None else v, "backward") in self.model.uses for v in results)
        index = self.node_of[self.model.ties.node_class[writer]]
        assert index is not None
        again = any(s.mode in SECOND for s in self.strategies[index])
        return SECOND if others and again else SECOND | {KEPT}

    def consumed(self, use: Use) -> tuple[int, Layouts]:
        """The problem node of a use, and the root's layout in which each of its choices reads."""
        if use.parameter is not None:
            index = self.parameter_of[self.model.ties.parameter_class[use.parameter]]
            return index, [*use.root.layouts(s.updated for s in self.parameter_strategies[index])]
        assert use.node is not None
        found = self.node_of[self.model.ties.node_class[use.node]]
        assert found is not None
        strategies = self.strategies[found]
        layouts = use.root.layouts(s.operands[use.position] for s in strategies)
        if not use.again:
            return found, [*layouts]
        return found, [
            x if s.mode in SECOND else None for x, s in zip(layouts, strategies, strict=True)
        ]

    def choice_from(self, other: CostTable, choice: tuple[int, ...]) -> tuple[int, ...]:
        """The choice of another table of the same model, mesh and pins that has no modes: every op
        in its first mode, in which it does not run again."""
        keys = {hub: key for key, hub in self.hub_of.items()}
        out = list(choice[: len(self.costs) - len(self.hub_layouts)])
        for hub, states in self.hub_layouts.items():
            key = keys[hub]
            at: Layout | None = None
            if key in other.hub_of:
                at = other.hub_layouts[other.hub_of[key]][choice[other.hub_of[key]]]
            elif None not in states:
                produced = self.produced(*key)
                assert produced is not None
                at = produced[1][out[produced[0]]]
            out.append(states.index(at) if at in states else 0)
        return tuple(out)
