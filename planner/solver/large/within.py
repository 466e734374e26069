"""Narrows a large problem with a memory limit: like `narrow`, with prices on memory.

Level -> a smaller level. The dual raises prices on the times that bind, which gives the bound.
Dives at those prices and a little above them give choices until one fits, annealing improves it,
and strategies whose marginal exceeds the gap are removed. Everything is counted in rounds and
moves, so the same problem gives the same result anywhere, unless the time is up.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from planner.solver.large.incumbent import Incumbent
from planner.solver.large.narrow import dive
from planner.solver.large.searcher import Searcher, Start
from planner.solver.problem.problem import Array
from planner.solver.reduce.level import Level
from planner.solver.reduce.working import Labels
from planner.solver.relax.flat import Flat
from planner.solver.relax.lagrange import Dual
from planner.solver.relax.peak import leanest

__all__ = ["narrow_within", "risen"]

#: Levels; on each, rounds that raise the bound, annealing runs, and moves per node of these.
_LEVELS, _ROUNDS, _RUNS, _MOVES = 4, 100, 4, 20

#: A further level must have less than this share of the states.
_LESS = 0.3

#: Factors on the best prices at which choices are read off until one fits, only the first few if
#: one that fits is known; sweeps before each.
_ABOVE, _FEW, _SWEEPS = (1.0, 1.1, 1.3, 1.6, 2.0, 4.0, 10.0), 2, 10


def narrow_within(level: Level, steps: Collection[str], best: Incumbent, few: int) -> Level:
    """The level reduced by `steps`, without strategies that are in no choice better than the best,
    until `few` pairs are left or further levels gain little. Choices and bounds found go into
    `best`."""
    prices: dict[int, float] = {}
    for _ in range(_LEVELS):
        if level.num_pairs <= few or best.over():
            break
        dual = risen(level, level.prices(prices), best.deadline)
        best.raise_bound(level.offset + dual.certified())
        prices = {int(level.clock[t]): float(dual.prices[t]) for t in np.flatnonzero(dual.prices)}
        labels = _read_off(level, dual, best)
        if best.choice is None:
            lean = leanest(level.problem, None).choice
            if lean is None or not best.take(level.restore(lean)):
                break
            labels = np.array(lean)
        searcher = Searcher(
            best,
            Start(level=level, flat=dual.flat, prices=dual.prices.copy(), labels=labels),
            moves=_MOVES,
        )
        for _ in range(_RUNS):
            searcher.step()
        dual.settle(0)
        kept = dual.kept(best.cost - level.offset)
        if sum(map(len, kept)) > _LESS * level.num_states:
            break
        level = level.without(kept, steps)
    return level


def risen(level: Level, prices: Array | None, deadline: float) -> Dual:
    """The dual after some rounds, at its best prices."""
    dual, rounds = Dual(Flat.of(level.problem), level.rows, prices, dot=_dot), itertools.count()
    dual.rise(deadline, lambda: next(rounds) >= _ROUNDS, lambda: None)
    dual.settle()
    return dual


def _read_off(level: Level, dual: Dual, best: Incumbent) -> Labels:
    """The first of the choices read off that fits, which `best` takes, or the last one. Leaves the
    messages at the best prices again."""
    for factor in _ABOVE if best.choice is None else _ABOVE[:_FEW]:
        dual.settle(0)
        priced = replace(dual.flat, costs=dual.priced(factor * dual.prices))
        for index in range(_SWEEPS):
            bound = dual.sweep(priced.costs, index % 2 == 0)
        labels = dive(priced, dual, abs(bound))
        if level.rows.fits(labels) and best.take(level.restore(tuple(labels.tolist()))):
            break
    dual.settle(0)
    return labels


def _dot(a: Array, b: Array) -> float:
    """The dot product without BLAS, which would wake its threads for ten thousand numbers: half of
    the time of a round (docs/decisions/0072)."""
    return float((a * b).sum())
