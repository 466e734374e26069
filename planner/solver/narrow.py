"""A large problem without a memory limit, made small: a bound, a choice that nearly meets it, and only what could still be better.

Problem -> `Narrowed`. Compiled message passing gives the bound. A *dive* gives the choice: nodes whose best strategy stands out are
held to it, else the one node that most others depend on, message passing goes on under that, and so forth until the choice read off
costs what is left to pay. What costs more than the difference beyond its node's best is in no better choice, and goes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from planner.solver.flat import Flat
from planner.solver.lagrange import Dual
from planner.solver.problem import Array, Choice, Problem
from planner.solver.reduce import Reduced, reduce
from planner.solver.rows import Rows
from planner.solver.solution import TOLERANCE
from planner.solver.working import Labels

__all__ = ["Narrowed", "narrow"]

#: Sweeps in each round, and after each node that is held.
_SWEEPS, _AFTER = (40, 100, 200, 200), 4

#: A node's best strategy stands out where the next one costs more by this share of the bound.
_CLEAR = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrowed:
    """`problem` is what is left, its costs `offset` below the whole's; nothing that was taken out is in a choice that costs less than
    the whole's `choice`, None where none was found. `restore` turns a choice of what is left into one of the whole."""

    problem: Problem
    offset: float
    choice: Choice | None
    restore: Callable[[Choice], Choice]


def narrow(problem: Problem, steps: Collection[str], *, upper: float = float("inf"), constant: float = 0.0) -> Narrowed:
    """The problem without what no choice cheaper than `upper`, or than the ones found, takes; reduced by `steps`. `constant` is what
    was taken out of the costs before: what counts as a difference depends on the sum."""
    chain: list[Reduced] = []
    best, offset, pairs = None, 0.0, float("inf")

    def restore(choice: Choice, levels: Sequence[Reduced]) -> Choice:
        for level in reversed(levels):
            choice = level.restore(choice)
        return choice

    left = problem
    for sweeps in _SWEEPS:
        if not left.costs or left.num_pairs > 0.5 * pairs:
            break
        pairs = left.num_pairs
        choice, kept, cost = _round(left, sweeps, upper - offset, constant + offset)
        if cost + offset < upper:
            best, upper = restore(choice, chain), cost + offset
        chain.append(reduce(left, steps, kept=kept))
        left, offset = chain[-1].problem, offset + chain[-1].offset
    return Narrowed(problem=left, offset=offset, choice=best, restore=lambda choice: restore(choice, chain))


def _round(problem: Problem, sweeps: int, upper: float, constant: float) -> tuple[Choice, list[Labels], float]:
    """A choice, the strategies of every node that one as good may take, and its cost."""
    flat = Flat.of(problem)
    dual = Dual(flat, Rows(problem))
    for index in range(sweeps):
        bound = dual.sweep(flat.costs, index % 2 == 0)
    dual.best = (dual.prices, dual.messages.copy())
    labels = _dive(flat, dual, _CLEAR * abs(bound + constant))
    dual.settle(0)
    cost = flat.cost(labels)
    states = dual.fixed(min(upper, cost))
    kept = np.split(states, np.searchsorted(states, flat.first[1:-1]))
    return tuple(labels.tolist()), [k - first for k, first in zip(kept, flat.first, strict=False)], cost


def _dive(flat: Flat, dual: Dual, clear: float) -> Labels:
    """A choice of low cost; the messages are another's afterwards."""
    costs, held = flat.costs.copy(), np.zeros(flat.num_nodes, dtype=bool)
    num_edges = np.diff(flat.at)
    best, least = dual.labels.copy(), flat.cost(dual.labels)
    while not held.all():
        lead = _lead(flat, dual)
        now = ~held & (lead > clear)
        if not now.any():
            free = np.flatnonzero(~held)
            now[free[np.lexsort((-lead[free], -num_edges[free]))[0]]] = True
        for node in np.flatnonzero(now):
            states = slice(flat.first[node], flat.first[node + 1])
            label = int(dual.marginals[states].argmin())
            kept = costs[states][label]
            costs[states] = np.inf
            costs[flat.first[node] + label] = kept
        held |= now
        for index in range(_AFTER):
            bound = dual.sweep(costs, index % 2 == 0)
        if not np.isfinite(bound):
            break
        if flat.cost(dual.labels) < least:
            best, least = dual.labels.copy(), flat.cost(dual.labels)
        if least - bound <= TOLERANCE * abs(least):
            break
    return best


def _lead(flat: Flat, dual: Dual) -> Array:
    """By how much each node's second-best strategy costs more than its best."""
    out: Array = np.full(flat.num_nodes, np.inf)
    for node in range(flat.num_nodes):
        marginals = dual.marginals[flat.first[node] : flat.first[node + 1]]
        if len(marginals) > 1:
            out[node] = np.partition(marginals, 1)[1]
    return out
