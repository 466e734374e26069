"""Narrows a large problem without a memory limit: a bound, a choice that nearly meets it, and only
the strategies that could still improve on that choice.

Level -> a smaller level. Compiled message passing gives the bound. A *dive* gives the choice: nodes
whose best strategy stands out are fixed to it (if there is none, the node that most others depend
on), message passing goes on, and so forth until the choice read off meets the bound. A strategy
that costs more than its node's best by more than the gap is in no better choice, and is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from planner.solver.problem.problem import Array, Choice, Problem
from planner.solver.problem.solution import TOLERANCE
from planner.solver.reduce.level import Level
from planner.solver.reduce.rows import Rows
from planner.solver.reduce.working import Labels
from planner.solver.relax.flat import Flat
from planner.solver.relax.lagrange import Dual

__all__ = ["dive", "narrow"]

#: Sweeps in each round, and after each step of a dive.
_SWEEPS, _AFTER = (40, 100, 200, 200), 4

#: A node's best strategy stands out if the next one costs more by this share of the bound; one dive
#: for each share.
_CLEAR = (1e-4, 1e-3)

#: The extra cost of a fixed node's other strategies, in units of the whole cost: more than any
#: choice costs, and still exact to 1e-9.
_DEAR = 1e3


def narrow(
    level: Level, steps: Collection[str], upper: float, stopped: Callable[[], bool] = lambda: False
) -> tuple[Level, Choice | None]:
    """The level reduced by `steps`, without strategies that are in no choice of the whole problem
    cheaper than `upper` and than those found; and the best choice of the whole that was found
    below `upper`. One round runs even if it is `stopped`, so that there is a choice."""
    best, pairs = None, float("inf")
    for sweeps in _SWEEPS:
        if (
            not level.problem.costs
            or level.num_pairs > 0.9 * pairs
            or (stopped() and best is not None)
        ):
            break
        pairs = level.num_pairs
        dual, bound = _swept(level.problem, sweeps)
        labels = _dived(dual, abs(bound + level.offset))
        cost = dual.flat.cost(labels) + level.offset
        if cost < upper:
            best, upper = level.restore(tuple(labels.tolist())), cost
        dual.settle(0)
        level = level.without(dual.kept(upper - level.offset), steps)
    return level, best


def _swept(problem: Problem, sweeps: int) -> tuple[Dual, float]:
    """The messages after some sweeps, to which `settle` returns, and their bound."""
    dual = Dual(Flat.of(problem), Rows(problem))
    for index in range(sweeps):
        bound = dual.sweep(dual.flat.costs, index % 2 == 0)
    dual.best = (dual.prices, dual.messages.copy())
    return dual, bound


def _dived(dual: Dual, size: float) -> Labels:
    """The best of some dives; costs add up to about `size`."""
    found = [dual.labels.copy()]
    for clear in _CLEAR:
        dual.settle(1)
        found.append(dive(dual.flat, dual, size, clear))
    return min(found, key=dual.flat.cost)


def dive(flat: Flat, dual: Dual, size: float, clear: float = _CLEAR[-1]) -> Labels:
    """A choice of low cost, by one dive from the messages of `dual`, which are changed. `flat` has
    the costs, which add up to about `size`."""
    costs, held = flat.costs.copy(), np.zeros(flat.num_nodes, dtype=bool)
    num_edges, dear = np.diff(flat.at), size * _DEAR
    best, least = dual.labels.copy(), flat.cost(dual.labels)
    while not held.all():
        lead = _lead(flat, dual)
        free = np.flatnonzero(~held)
        first = free[np.lexsort((-lead[free], -num_edges[free]))[0]]
        # All of them together or, if that fails, one by itself.
        for now in (np.flatnonzero(~held & (lead > clear * size)), np.array([first])):
            messages, marginals = dual.messages.copy(), dual.marginals.copy()
            trial = _held(flat, dual, costs, now, dear)
            for index in range(_AFTER):
                bound = dual.sweep(trial, index % 2 == 0)
            if len(now) and bound < 0.5 * dear:
                costs, held[now] = trial, True
                break
            dual.messages[:], dual.marginals[:] = messages, marginals
        else:
            break
        cost = flat.cost(dual.labels)
        if cost < least:
            best, least = dual.labels.copy(), cost
        if np.isfinite(least) and least - bound <= TOLERANCE * abs(least):
            break
    return best


def _held(flat: Flat, dual: Dual, costs: Array, nodes: Labels, dear: float) -> Array:
    """The costs with some nodes fixed to their best strategies: their others cost `dear` more."""
    out = costs.copy()
    for node in nodes:
        states = slice(flat.first[node], flat.first[node + 1])
        label = int(dual.marginals[states].argmin())
        out[states] += dear
        out[states][label] -= dear
    return out


def _lead(flat: Flat, dual: Dual) -> Array:
    """How much more each node's second-best strategy costs than its best."""
    out: Array = np.full(flat.num_nodes, np.inf)
    for node in range(flat.num_nodes):
        marginals = dual.marginals[flat.first[node] : flat.first[node + 1]]
        if len(marginals) > 1:
            out[node] = np.partition(marginals, 1)[1]
    return out
