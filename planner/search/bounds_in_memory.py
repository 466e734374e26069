"""A lower bound on the step of every plan that fits the memory.

Table with modes, capacity -> seconds. At the turn from forward to backward a rank holds parameters,
optimizer state and all that forward keeps. A price per byte held then, with what fits given back,
bounds the step of every plan that fits:

    min over plans that fit of step >= max over p >= 0 of (min over x of cost(x) + p held(x)) - p capacity

At the turn like layers hold alike, so the bound is also one of plans whose like layers have unlike
modes. What is held is counted low: nothing that is gathered, cast, or sent on, and no small value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from planner.graph.layout import Mesh
from planner.lowering.early import SMALL
from planner.search.bounds import GOOD, MeshBound, bound_problem
from planner.search.fitting import MOST_PAIRS
from planner.search.least import Least
from planner.search.proposals import Proposer
from planner.solver.exact.ilp import solve
from planner.solver.problem.problem import Array, Choice, Problem
from planner.strategy.build_cost_table import TooLarge
from planner.strategy.cost_table import CostTable
from planner.strategy.held import Held
from planner.strategy.problem import problem_of
from planner.strategy.usages import result_bytes, state_bytes

__all__ = ["bound_of_fitting", "bounded_in_memory", "held_at_turn"]

#: The prices tried, after one at which all that is allowed costs so many steps.
_PRICES, _DEAR = 8, 30.0


def bounded_in_memory(
    table: CostTable,
    least: Least,
    capacity: float,
    guess: Choice,
    seconds: Callable[[], float] = lambda: math.inf,
) -> float:
    """A lower bound, in seconds, on the step of every choice of a table that holds at most
    `capacity` bytes. The price is sought where a choice that fits and one that does not cost the
    same: the bound is concave in it."""
    problem, held = bound_problem(table, least), held_at_turn(table)
    over = _Line(problem, held, 0.0, guess, seconds())
    best = over.bound
    if over.held <= capacity:
        return best
    fits = _Line(problem, held, _DEAR * over.bound / capacity, over.choice, seconds())
    best = max(best, fits.bound - fits.price * capacity)
    for _ in range(_PRICES if fits.held <= capacity else 0):
        price = (fits.cost - over.cost) / max(over.held - fits.held, 1.0)
        if not over.price < price < fits.price:
            break
        line = _Line(problem, held, price, fits.choice, seconds())
        best = max(best, line.bound - price * capacity)
        if line.held > capacity:
            over = line
        else:
            fits = line
    return best


def bound_of_fitting(
    proposer: Proposer, meshes: Mapping[Mesh, MeshBound], step: float = math.inf
) -> float:
    """A lower bound, in seconds, on the step of every plan on some meshes that fits the memory.
    `meshes` have their bounds without memory. The lowest is raised, under the weights that gave it,
    until it is within `GOOD` of the plan's `step`, cannot be raised (also as the mesh's table is too
    large), or the time is up."""
    bounds, left = {mesh: known.bound for mesh, known in meshes.items()}, {*meshes}

    def seconds() -> float:
        return max(1.0, proposer.budget.left / 2)

    while True:
        lowest = min(bounds, key=lambda mesh: bounds[mesh])
        good = bounds[lowest] >= step * (1 - GOOD)
        if good or lowest not in left or proposer.budget.over():
            return bounds[lowest]
        left.remove(lowest)
        try:
            table = proposer.table_across(lowest, most_pairs=MOST_PAIRS)
        except TooLarge:
            continue
        least = Least(proposer.model, table.costing, meshes[lowest].weights)
        guess = solve(problem_of(table), time_limit=seconds()).choice
        raised = bounded_in_memory(table, least, proposer.capacity, guess, seconds)
        bounds[lowest] = max(bounds[lowest], raised)


class _Line:
    """The best choice at a price per byte, its cost without that, and what it holds."""

    def __init__(
        self,
        problem: Problem,
        held: dict[int, Array],
        price: float,
        guess: Choice,
        time_limit: float,
    ) -> None:
        costs = tuple(
            table + price * held[n] if n in held else table for n, table in enumerate(problem.costs)
        )
        solution = solve(replace(problem, costs=costs), guess=guess, time_limit=time_limit)
        self.price, self.choice, self.bound = price, solution.choice, solution.bound
        self.held = float(sum(nbytes[self.choice[n]] for n, nbytes in held.items()))
        self.cost = solution.objective - price * self.held


def held_at_turn(table: CostTable) -> dict[int, Array]:
    """The fewest bytes that each choice of a problem node holds at the turn from forward to
    backward."""
    graph, timing = table.model.graph, Held(table)
    out: dict[int, Array] = dict(state_bytes(table))
    turn = next((n.index for n in graph.nodes if n.phase == "backward"), len(graph.nodes))
    known: dict[tuple[int, int], Array] = {}
    for value, uses in table.readings.by_value.items():
        writer = graph.values[value].writer
        if (
            writer is None
            or graph.nodes[writer].phase != "forward"
            or timing.looked_at(value) is not None
            or value in table.model.formats
            or graph.values[value].numel * 8 <= SMALL
        ):
            continue
        number = table.node_of[table.model.ties.node_class[writer]]
        assert number is not None
        key = number, graph.nodes[writer].results.index(value)
        if key not in known:
            known[key] = result_bytes(table, value)
        strategies = table.strategies[number]
        modes = (s.mode for s in strategies)
        for mode, spans in timing.by_mode(modes, value, uses, writer).items():
            if any(start < turn < end for start, end in spans):
                chosen = np.array([s.mode == mode for s in strategies])
                out[number] = out.get(number, np.zeros(len(strategies))) + chosen * known[key]
    return out
