"""The primal search: annealing runs one after another, each from the best choice known.

Runs start cool. One that does not improve the best is followed by a hotter one; after the hottest
comes the coolest with twice the moves. So a small problem is melted down many times, and a large
one is first cooled down well. Everything is counted in moves, not in seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from planner.solver.large.anneal import Annealer, Run
from planner.solver.large.incumbent import Incumbent
from planner.solver.problem.problem import Array
from planner.solver.reduce.level import Level, sum_of_minima
from planner.solver.reduce.working import Labels
from planner.solver.relax.flat import Flat
from planner.solver.relax.polytope import magnitude

__all__ = ["Searcher", "Start"]

#: Temperatures at the start of runs and at the end of each, as shares of the mean, over nodes, of
#: what the start costs beyond the sum of all minima.
_HEATS, _COOL = (0.1, 0.4, 1.5, 5.0), 0.02

#: Moves per node in the first runs; the factor by which later runs may have more; the share by
#: which a run must improve the best to be repeated.
_MOVES, _GROWTH, _WORTH = 100, 16, 2e-4

#: The charge per share of the limit over the room, in successive rounds of temperatures, as a
#: multiple of all prices together; the least that these count as, as a share of the cost.
_WEIGHTS, _LEAST = (4.0, 10.0, 2.0), 0.1

#: Runs from this temperature on melt the choice: they start with the bound's prices times each of
#: these factors in turn. The others start with the prices that the last run left.
_MELTED, _FACTORS = 1.5, (1.0, 0.5)

#: Seconds between two reports of a better choice: to restore a choice of the whole problem and add
#: up its cost takes 0.1 s.
_EVERY = 1.0

#: Differences between the seeds of two runs, and of two searchers.
_SEED, _APART = 1_000_003, 500_000_003


@dataclass(frozen=True, kw_only=True)
class Start:
    """A level to search, with good prices there and labels to begin with."""

    level: Level
    flat: Flat
    prices: Array
    labels: Labels


class Searcher:
    """Runs on a level, the first with `moves` per node. Of several searchers, number k starts at
    the k-th temperature."""

    def __init__(self, best: Incumbent, start: Start, number: int = 0, moves: int = _MOVES) -> None:
        self.best, self.number, self._seed, self._first = best, number, number * _APART, moves
        self.put(start)

    def put(self, start: Start) -> None:
        """Switches to another level from the next run on."""
        self.start = start
        self._fresh = True

    def until_over(self) -> None:
        """Runs until there is nothing left to do: what a thread does."""
        try:
            while not self.best.over():
                self.step()
        except BaseException:
            self.best.ended = True
            raise

    def step(self) -> None:
        """One run. The first on a level begins at its start, even if a better choice is known,
        which may lie in a worse valley."""
        first = self._fresh
        if first:
            self._fresh, self._level = False, self.start
            self._heat = self.number % len(_HEATS)
            self._moves = self._first
            self._labels = self.start.labels
            self._rounds, self._melts = 0, -1
            self._annealer = _annealer(self.start, _WEIGHTS[0])
        if _HEATS[self._heat] >= _MELTED:
            self._melts += 1
            self._annealer.prices = self._level.prices * _FACTORS[self._melts % len(_FACTORS)]
        before = self.best.cost
        self._anneal(_HEATS[self._heat], self._moves, first)
        if self.best.cost < before - _WORTH * abs(before):
            return
        self._heat = (self._heat + 1) % len(_HEATS)
        if self._heat == 0:
            self._moves = min(2 * self._moves, _GROWTH * self._first)
            self._rounds += 1
            # The last run's prices have drifted.
            self._annealer = _annealer(self._level, _WEIGHTS[self._rounds % len(_WEIGHTS)])

    def _anneal(self, heat: float, moves: int, first: bool) -> None:
        """One run. Unless it is the `first`, it starts from the better of the best choice known and
        the end of the last run."""
        level, flat, best = self._level.level, self._level.flat, self.best
        labels = self._labels
        if best.choice is not None and not first:
            labels = min(labels, level.project(best.choice), key=self._charged)
        above = (flat.cost(labels) - sum_of_minima(level.problem)) / flat.num_nodes
        unit = max(above, 1e-12) if np.isfinite(above) else magnitude(level.problem)

        finds = _Finds(best, level, flat)
        self._seed = (self._seed + _SEED) % 2**31
        run = Run(
            heat=heat * unit, cool=_COOL * unit, moves=moves * flat.num_nodes, seed=self._seed
        )
        self._labels = self._annealer.run(
            labels, run, finds.found, lambda: best.over() or self._fresh
        )
        finds.tell()

    def _charged(self, labels: Labels) -> float:
        """The cost of a choice plus a charge for its excess over the limit at the worst time."""
        over = float(self._level.level.rows.excess(labels).max(initial=0.0)) / self._annealer.unit
        return self._level.flat.cost(labels) + self._annealer.weight * over


class _Finds:
    """The best choice of a run, reported from time to time."""

    def __init__(self, best: Incumbent, level: Level, flat: Flat) -> None:
        self.best, self.level, self.flat = best, level, flat
        self.labels: Labels | None = None
        self.cost, self.told = float("inf"), time.perf_counter() if best.choice is not None else 0.0

    def found(self, labels: Labels) -> None:
        """Keeps labels, if they are the best of the run."""
        cost = self.flat.cost(labels)
        if cost < self.cost and self.level.rows.fits(labels):
            self.labels, self.cost = labels.copy(), cost
            if time.perf_counter() - self.told > _EVERY:
                self.tell()

    def tell(self) -> None:
        """Reports the best of the run, if it is the best of all."""
        if self.labels is not None and self.best.bettered_by(self.level.offset + self.cost):
            self.best.take(self.level.restore(tuple(self.labels.tolist())))
            self.told = time.perf_counter()


def _annealer(start: Start, factor: float) -> Annealer:
    cost = start.flat.cost(start.labels)
    weight = factor * max(
        float(start.prices.sum()), _LEAST * abs(cost if np.isfinite(cost) else 1.0), 1e-9
    )
    return Annealer(start.level.problem, start.flat, start.level.rows, start.prices, weight)
