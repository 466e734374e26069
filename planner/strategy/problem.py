"""A `CostTable` as a strategy-selection `Problem`: its costs under one objective, and the memory of
its choices.

CostTable, share of communication that is overlapped, memory limit -> Problem.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.solver.problem.pairs import PairUsage, with_pair_usages
from planner.solver.problem.problem import Array, Edge, Problem
from planner.strategy.cost_table import CostTable
from planner.strategy.usages import usages

__all__ = ["limited", "problem_of", "with_memory"]


def problem_of(
    table: CostTable, *, overlapped: float = 0.0, limit: float = float("inf")
) -> Problem:
    """The problem of a table. `overlapped` is the share of parameters' and gradients' communication
    that runs beside compute and is left out of the objective; `limit` is the bytes per device. Only
    if it is finite does the problem have usages and, after all other nodes, those of pairs."""
    exposed = 1.0 - overlapped
    costs = [
        c + exposed * table.overlappable_costs[n] if n in table.overlappable_costs else c
        for n, c in enumerate(table.costs)
    ]
    edges = tuple(Edge(u=u, v=v, cost=_pair(table, (u, v), exposed)) for u, v in table.edges)
    horizon = len(table.model.graph.nodes) + 1
    return limited(
        table, Problem(costs=tuple(costs), edges=edges, horizon=horizon, names=table.names), limit
    )


def limited(table: CostTable, problem: Problem, limit: float) -> Problem:
    """A problem on the table's nodes and edges, with a memory limit added."""
    return (
        problem if limit == float("inf") else with_pair_usages(*with_memory(table, problem, limit))
    )


def with_memory(
    table: CostTable, problem: Problem, limit: float
) -> tuple[Problem, tuple[PairUsage, ...]]:
    """The problem under a limit with the usages of nodes, and the usages of pairs."""
    nodes, pairs = usages(table, {key: i for i, key in enumerate(table.edges)}, limit)
    return replace(problem, limit=limit, usages=nodes), pairs


def _pair(table: CostTable, key: tuple[int, int], exposed: float) -> Array:
    plain, overlappable = table.pairs.get(key), table.overlappable_pairs.get(key)
    if overlappable is None:
        assert plain is not None
        return plain
    scaled = overlappable * exposed if exposed else np.where(np.isfinite(overlappable), 0.0, np.inf)
    return scaled if plain is None else plain + scaled
