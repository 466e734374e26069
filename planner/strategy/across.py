"""Second runs that lead across layers: what one layer leaves to another need not be kept.

Table, tied choice -> the table of that choice alone, in which every op has its chosen strategy in
each of its modes, those across layers included. Tables that are solved have no such modes: tied, a
chain would lead through all layers, and what it holds would depend on the modes of all of them.
"""

from __future__ import annotations

from dataclasses import replace

from planner.solver.problem.problem import Choice
from planner.strategy.cost_table import CostTable
from planner.strategy.recompute import Recompute
from planner.strategy.strategies import SECOND, Strategy

__all__ = ["across_layers"]


def across_layers(table: CostTable, choice: Choice) -> tuple[CostTable, Choice]:
    """The table of a choice with the modes of its ops, and the choice in it. Parameters and hubs
    keep their options, and the table's costs are not its own."""
    recompute = Recompute(table.model, across=True)
    strategies: dict[int, tuple[Strategy, ...]] = dict(table.strategies)
    at, again = list(choice), set[int]()
    for cls, number in enumerate(table.node_of):
        if number is None:
            continue
        chosen = table.strategies[number][choice[number]]
        modes = recompute.modes[cls]
        if len({s.mode for s in table.strategies[number]}) > 1:
            modes = tuple(dict.fromkeys((*modes, chosen.mode)))
            at[number] = modes.index(chosen.mode)
        else:  # only second runs across layers may read what backward does not
            at[number] = 0
        strategies[number] = tuple(replace(chosen, mode=mode) for mode in modes)
        if not SECOND.isdisjoint(modes):
            again.add(cls)
    readings = recompute.readings(frozenset(again))
    return replace(table, strategies=strategies, readings=readings), tuple(at)
