"""Anytime solver for a problem of any size: reduce; prove by integer program if what is left is
small, else bound and search side by side.

Problem -> Solution. Ends when the cost meets the bound, when the time is up, or when it is stopped,
always with the best choice found and a valid bound. The returned figures are recomputed from the
problem's own numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.solver.large.incumbent import Incumbent, Tell
from planner.solver.problem.problem import Problem
from planner.solver.problem.solution import Solution, found, not_found
from planner.solver.reduce.level import Level, sum_of_minima
from planner.solver.reduce.reduce import Contradiction
from planner.solver.relax.peak import smallest_peak
from planner.solver.relax.polytope import Outcome, Polytope

if TYPE_CHECKING:
    from planner.solver.exact.windows import Windows
    from planner.solver.large.searcher import Searcher, Start
    from planner.solver.reduce.working import Labels
    from planner.solver.relax.flat import Flat
    from planner.solver.relax.lagrange import Dual

__all__ = ["certify"]

#: Up to this many possible pairs the integer program comes first: HiGHS proves such problems in
#: seconds, or is given up after a share `_TRY` of the time.
_SMALL, _TRY = 120_000, 0.6

#: Shares of the time left that raising the bound may take: the first time, and later.
_RISE, _AGAIN = 0.4, 0.1

#: Seconds of annealing and of windows between two rounds of fixing strategies.
_SEARCH, _WINDOWS = 20.0, 10.0

#: A search starts with only those crude prices that are at least this many times the mean one; with
#: all of them it would be slow.
_CRUDE = 10.0

#: Windows go on while they improve the best cost by this share in `_WINDOWS` seconds.
_WORTH = 2e-4

#: A further level must have at most this share of the states for its bound to be raised anew.
_SMALLER = 0.97

#: A choice over the limit is ranked by its cost plus this many times the price of its excess.
_DEAR = 5.0

#: Factors on the best prices at which choices are read off (above 1, they save a little more memory
#: than needed), and sweeps at each.
_ABOVE, _READ = (1.0, 1.005, 1.02), 8


def certify(
    problem: Problem,
    *,
    time_limit: float,
    began: float | None = None,
    tell: Tell = lambda cost, bound: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Solution:
    """The best choice found within `time_limit` seconds (from `began`), and its bound."""
    began = time.perf_counter() if began is None else began
    best = Incumbent(problem, began + time_limit, tell, stopped)
    search = _Search(best)
    try:
        search.run()
    except Contradiction:
        best.exhausted = True
    return _answer(best, began, search.num_variables)


class _Search:
    """One call of `certify`: its stages."""

    def __init__(self, best: Incumbent) -> None:
        self.best = best
        self.num_variables = 0
        self.windows: Windows | None = None
        self.prices: dict[int, float] = {}  # by the whole problem's times

    def run(self) -> None:
        """All stages."""
        level, best = Level.of(self.best.problem), self.best
        best.raise_bound(level.offset + sum_of_minima(level.problem))
        now = time.perf_counter()
        self._exactly(level, now + _TRY * max(0.0, best.deadline - now))
        if not best.over():
            self._side_by_side(level)

    def _exactly(self, level: Level, deadline: float) -> None:
        """Solves the integer program of a level, if it is small enough."""
        if level.num_pairs > _SMALL:
            return
        best = self.best
        if not level.problem.costs:
            best.take(level.restore(()))
            best.raise_bound(level.offset)
            return
        program = Polytope(level.problem, level.rows, stopped=lambda: best.stopped() or best.ended)
        self.num_variables = level.num_states + level.num_pairs
        outcome: Outcome = program.solve(
            deadline, found=lambda choice: best.take(level.restore(choice))
        )
        if outcome.choice is not None:
            best.take(level.restore(outcome.choice))
        best.raise_bound(level.offset + outcome.bound)

    def _side_by_side(self, level: Level) -> None:
        """Runs bounding, fixing and windows in this thread and annealing in a second one; annealing
        here too, once the bound has converged."""
        from planner.solver.large.searcher import Searcher

        dual, start = self._begun(level)
        there = Searcher(self.best, start)
        with ThreadPoolExecutor(1) as pool:
            searching = pool.submit(there.until_over)
            try:
                start = self._risen(level, dual, _RISE)
                there.put(start)
                here = Searcher(self.best, start, number=1)
                if self.best.choice is None:
                    self._any_that_fits(start)
                while not self.best.over():
                    dual, start = self._round(here, dual, start)
                    if start is not here.start:
                        here.put(start)
                        there.put(start)
            finally:
                self.best.ended = True  # ends the thread
        searching.result()

    def _round(self, searcher: Searcher, dual: Dual, start: Start) -> tuple[Dual, Start]:
        """Anneals and runs windows for a while, then fixes strategies; goes to a new level if that
        leaves much less."""
        best = self.best
        until = min(best.deadline, time.perf_counter() + _SEARCH)
        while time.perf_counter() < until and not best.over():
            searcher.step()
        self._windows(start)
        if best.over() or best.choice is None:
            return dual, start
        level = self._fixed(start, dual)
        if level.num_states > _SMALLER * start.level.num_states:
            return dual, start
        self._exactly(level, best.deadline)
        return (dual, start) if best.over() else self._further(level)

    # ------------------------------------------------------------------------------------ the bound

    def _begun(self, level: Level) -> tuple[Dual, Start]:
        """Crude prices, and a choice that fits or nearly does, from which a search can start
        before the bound is known."""
        from planner.solver.large.searcher import Start
        from planner.solver.relax.flat import Flat
        from planner.solver.relax.lagrange import Dual

        best, flat = self.best, Flat.of(level.problem)
        dual = Dual(flat, level.rows)
        dual.begin(
            lambda labels: (
                level.rows.fits(labels) and best.take(level.restore(tuple(labels.tolist())))
            )
        )
        prices = np.where(
            dual.prices > _CRUDE * dual.prices.sum() / max(len(dual.prices), 1), dual.prices, 0.0
        )
        return dual, Start(level=level, flat=flat, prices=prices, labels=dual.labels.copy())

    def _risen(self, level: Level, dual: Dual, share: float) -> Start:
        """Raises the bound of a level for a share of the time left; returns where a search can go
        on."""
        from planner.solver.large.searcher import Start

        best, now = self.best, time.perf_counter()
        dual.rise(
            now + share * (best.deadline - now),
            best.over,
            lambda: best.say(level.offset + dual.bound),
        )
        dual.settle()
        best.raise_bound(level.offset + dual.certified())
        self.prices = {
            int(level.clock[t]): float(dual.prices[t]) for t in np.flatnonzero(dual.prices)
        }
        return Start(
            level=level,
            flat=dual.flat,
            prices=dual.prices.copy(),
            labels=_read_off(dual.flat, dual),
        )

    def _further(self, level: Level) -> tuple[Dual, Start]:
        """The dual and start of a further level, from the prices of the last one."""
        from planner.solver.relax.flat import Flat
        from planner.solver.relax.lagrange import Dual

        dual = Dual(Flat.of(level.problem), level.rows, level.prices(self.prices))
        start = self._risen(level, dual, _AGAIN)
        assert self.best.choice is not None  # else nothing was fixed
        return dual, replace(start, labels=level.project(self.best.choice))

    def _fixed(self, start: Start, dual: Dual) -> Level:
        """The level without the strategies that no better choice contains."""
        dual.settle(0)
        kept = dual.kept(self.best.cost - start.level.offset)
        if sum(map(len, kept)) > _SMALLER * len(start.flat.costs):
            return start.level
        return start.level.without(kept)

    # -------------------------------------------------------------------------------------- choices

    def _any_that_fits(self, start: Start) -> None:
        """If no choice read off fits: finds a lean choice, or proves that none fits."""
        level, best = start.level, self.best
        lean = smallest_peak(
            level.problem, best.deadline, lambda: best.hurry() or best.choice is not None
        )
        if lean.choice is not None:
            best.take(level.restore(lean.choice))
        best.exhausted = best.exhausted or lean.peak > level.problem.limit

    def _windows(self, start: Start) -> None:
        """Large-neighbourhood search from the best choice of both threads, for some seconds, and
        again as long as it improves that choice."""
        from planner.solver.exact.windows import Windows

        best, level = self.best, start.level
        if best.choice is None:
            return
        if self.windows is None or self.windows.flat is not start.flat:
            self.windows = Windows(
                level.problem, start.flat, level.rows, level.project(best.choice), seed=0
            )
        windows, cost = self.windows, best.cost
        windows.put(level.project(best.choice))
        until, before = time.perf_counter() + _WINDOWS, cost
        while not best.over():
            if time.perf_counter() > until:
                if best.cost > before - _WORTH * abs(before):
                    break
                until, before = time.perf_counter() + _WINDOWS, best.cost
            if best.cost < cost:
                windows.put(level.project(best.choice))
            if windows.step(best.deadline, best.over):
                best.take(level.restore(tuple(windows.labels.tolist())))
            cost = best.cost


def _read_off(flat: Flat, dual: Dual) -> Labels:
    """The most promising of the choices read off at the best prices and a little above them."""
    read = []
    for factor in _ABOVE:
        costs = dual.priced(dual.prices * factor)
        for index in range(_READ):
            dual.sweep(costs, index % 2 == 0)
            read.append(dual.labels.copy())
    dual.settle()
    return min(read, key=lambda labels: _promise(flat, dual, labels))


def _promise(flat: Flat, dual: Dual, labels: Labels) -> float:
    """The cost of a choice plus a charge for its excess over the limit at the worst time."""
    over = max(0.0, float(dual.rows.excess(labels).max(initial=0.0))) / dual.unit
    return flat.cost(labels) + _DEAR * over * max(float(dual.prices.sum()), abs(dual.bound))


def _answer(best: Incumbent, began: float, num_variables: int) -> Solution:
    """The solution found; if none fits, the leanest choice and a lower bound on any peak."""
    whole = best.problem
    if best.choice is not None:
        bound = best.cost if best.exhausted else best.bound
        return found(whole, best.choice, bound=bound, began=began, num_variables=num_variables)
    lean = smallest_peak(whole, time.perf_counter() + 10.0, best.stopped)
    if lean.choice is not None and best.take(lean.choice):
        return found(whole, lean.choice, bound=best.bound, began=began, num_variables=num_variables)
    known = best.exhausted or lean.peak > whole.limit * (1 + 1e-9)
    return not_found(
        whole, lean.choice, began=began, bound=best.bound, lean=lean.peak, at=lean.at, known=known
    )
