"""A large problem without a memory limit, made small: a bound, a choice that nearly meets it, and only what could still be better.

Problem -> `Narrowed`. Compiled message passing gives the bound. A *dive* gives the choice: nodes whose best strategy stands out are
held to it, else the one node that most others depend on, message passing goes on under that, and so forth until the choice read off
costs what is left to pay. What costs more than the difference beyond its node's best is in no better choice, and goes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.solver.flat import Flat
from planner.solver.lagrange import Dual
from planner.solver.problem import Array, Choice, Problem
from planner.solver.reduce import Reduced, reduce
from planner.solver.rows import Rows
from planner.solver.solution import TOLERANCE
from planner.solver.working import Labels

__all__ = ["Narrowed", "dive", "narrow"]

#: Sweeps in each round, and after each node that is held.
_SWEEPS, _AFTER = (40, 100, 200, 200), 4

#: A node's best strategy stands out where the next one costs more by this share of the bound: one dive for each.
_CLEAR = (1e-4, 1e-3)


#: What a node that is held pays for another strategy, in costs of the whole: more than any choice costs, and still exact to 1e-9.
_DEAR = 1e3


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
        if not left.costs or left.num_pairs > 0.9 * pairs:
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
    labels = dual.labels.copy()
    for clear in _CLEAR:
        dual.messages[:] = dual.best[1]
        dual.sweep(flat.costs, False)
        labels = min(labels, _dive(flat, dual, clear, abs(bound + constant)), key=flat.cost)
    dual.settle(0)
    cost = flat.cost(labels)
    states = dual.fixed(min(upper, cost))
    kept = np.split(states, np.searchsorted(states, flat.first[1:-1]))
    return tuple(labels.tolist()), [k - first for k, first in zip(kept, flat.first, strict=False)], cost


def dive(problem: Problem) -> Choice:
    """A choice of low cost of a problem of many pairs."""
    flat = Flat.of(problem)
    dual = Dual(flat, Rows(replace(problem, usages=(), base=None, limit=float("inf"))))
    for index in range(_SWEEPS[0]):
        bound = dual.sweep(flat.costs, index % 2 == 0)
    return tuple(_dive(flat, dual, _CLEAR[0], abs(bound)).tolist())


def _dive(flat: Flat, dual: Dual, clear: float, size: float) -> Labels:
    """A choice of low cost, where costs are about `size` in all; the messages are another's afterwards."""
    costs, held = flat.costs.copy(), np.zeros(flat.num_nodes, dtype=bool)
    num_edges, dear = np.diff(flat.at), size * _DEAR
    best, least = dual.labels.copy(), flat.cost(dual.labels)
    while not held.all():
        lead = _lead(flat, dual)
        free = np.flatnonzero(~held)
        first = free[np.lexsort((-lead[free], -num_edges[free]))[0]]
        for now in (np.flatnonzero(~held & (lead > clear * size)), np.array([first])):  # together, or else one by itself
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
    """The costs with some nodes held to their best strategies: all others cost `dear` more."""
    out = costs.copy()
    for node in nodes:
        states = slice(flat.first[node], flat.first[node + 1])
        label = int(dual.marginals[states].argmin())
        out[states] += dear
        out[states][label] -= dear
    return out


def _lead(flat: Flat, dual: Dual) -> Array:
    """By how much each node's second-best strategy costs more than its best."""
    out: Array = np.full(flat.num_nodes, np.inf)
    for node in range(flat.num_nodes):
        marginals = dual.marginals[flat.first[node] : flat.first[node + 1]]
        if len(marginals) > 1:
            out[node] = np.partition(marginals, 1)[1]
    return out
