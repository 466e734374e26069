"""A problem of any size, best choice first: reduce, prove by integer program what is small, else bound, search, fix, and reduce again.

Problem -> Solution. Ends when the cost meets the bound, when the time is up, or when it is stopped, always with the best choice found
and a bound that holds. What it returns was added up anew from the problem's own numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.solver.peak import smallest_peak
from planner.solver.polytope import Outcome, Polytope
from planner.solver.problem import Choice, Problem
from planner.solver.reduce import Contradiction, Reduced, reduce
from planner.solver.rows import Rows
from planner.solver.solution import TOLERANCE, Solution

if TYPE_CHECKING:
    from planner.solver.lagrange import Dual
    from planner.solver.primal import Primal
    from planner.solver.problem import Array
    from planner.solver.working import Labels

__all__ = ["certify"]

#: Possible pairs up to which the integer program comes first: HiGHS proves such in seconds, or is given up after `_TRY` of the time.
_SMALL, _TRY = 120_000, 0.6

#: Shares of the time left that the first rise of the bound takes, and seconds of search between two of fixing.
_RISE, _SEARCH = 0.4, 30.0

#: Seconds that local search may take over a choice read off the rising bound; all such take a third of the time at most.
_READ = 4.0

#: A choice over the limit is worth reading off if its cost and this many times the price of what it is over promise the best yet.
_DEAR = 5.0

#: Factors on the best prices at which choices are read off at the end of a rise (a little more memory is saved than need be), and
#: the share of the time left within which the next may begin.
_ABOVE, _READING = (1.0, 1.005, 1.02), 0.2

#: Called with the cost of the best choice, infinite before there is one, and the bound.
Tell = Callable[[float, float], None]


def certify(
    problem: Problem, *, time_limit: float, began: float | None = None, tell: Tell = lambda cost, bound: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Solution:  # fmt: skip
    """The best choice found within `time_limit` seconds (from `began`), and its bound."""
    search = _Search(problem, time.perf_counter() if began is None else began, time_limit, tell, stopped)
    try:
        search.run()
    except Contradiction:
        search.exhausted = True
    return search.solution()


@dataclass(slots=True)
class _Level:
    """A reduced problem, and the way from it to the whole one."""

    problem: Problem
    rows: Rows
    offset: float
    chain: tuple[Reduced, ...]
    clock: Labels

    def restore(self, choice: Choice) -> Choice:
        for reduced in reversed(self.chain):
            choice = reduced.restore(choice)
        return choice

    def project(self, choice: Choice) -> Choice:
        for reduced in self.chain:
            choice = reduced.project(choice)
        return choice

    @property
    def num_pairs(self) -> int:
        return sum(edge.cost.size for edge in self.problem.edges)


class _Search:
    """The state of one `certify`: the best choice of the whole problem, and the best bound."""

    def __init__(self, problem: Problem, began: float, time_limit: float, tell: Tell, stopped: Callable[[], bool]) -> None:
        self.whole, self.began, self.deadline = problem, began, began + time_limit
        self.tell, self.stopped = tell, stopped
        self.best: Choice | None = None
        self.cost, self.bound = float("inf"), -float("inf")
        self.exhausted = False  # whether it was shown that no choice (better than the best) is there
        self.shown = -float("inf")  # the highest bound that was told
        self.num_variables = 0
        self.prices: dict[int, float] = {}

    def over(self) -> bool:
        """Whether there is nothing left to do, or no time to do it."""
        return self.exhausted or self.stopped() or time.perf_counter() >= self.deadline or self._proved()

    def _proved(self) -> bool:
        return self.best is not None and self.cost - self.bound <= TOLERANCE * abs(self.cost)

    def run(self) -> None:
        """All stages."""
        reduced = reduce(self.whole)
        level = _Level(reduced.problem, Rows(reduced.problem), reduced.offset, (reduced,), reduced.clock)
        self._raise(level.offset + _sum_of_minima(level.problem))
        tried = self._exactly(level, time.perf_counter() + _TRY * max(0.0, self.deadline - time.perf_counter()))
        share = _RISE
        while not self.over():
            level, share = self._round(level, share), 0.25 * _RISE
            tried = tried or self._exactly(level, self.deadline)
            if tried and level.num_pairs <= _SMALL and not self.over():
                tried = False

    # ------------------------------------------------------------------------------------------ stages

    def _exactly(self, level: _Level, deadline: float) -> bool:
        """The integer program of a level, if it is small enough; whether it was tried."""
        if level.num_pairs > _SMALL:
            return False
        if not level.problem.costs:
            self._take(level, (), level.offset)
            self._raise(level.offset)
            return True
        program = Polytope(level.problem, level.rows, stopped=self.stopped)
        self.num_variables = level.rows.first[-1].item() + level.num_pairs
        found: Outcome = program.solve(deadline, found=lambda choice: self._take(level, choice))
        if found.choice is not None:
            self._take(level, found.choice)
        self._raise(level.offset + found.bound)
        return True

    def _round(self, level: _Level, share: float) -> _Level:
        """The bound risen, choices read off and bettered, strategies fixed; the level that is left."""
        from planner.solver.flat import Flat
        from planner.solver.lagrange import Dual
        from planner.solver.primal import Primal

        flat, rows = Flat.of(level.problem), level.rows
        dual = Dual(flat, rows, self._carried(level))
        primal = Primal(level.problem, flat, rows)
        self._rise(level, dual, primal, share)
        dual.settle()
        self._raise(level.offset + dual.certified())
        self._remember(level, dual)
        self._read_off(level, dual, primal)
        if self.best is None:
            self._any_that_fits(level, dual, primal)
        if not self.over():
            self._windows(level, dual, primal)
        return level if self.over() else self._fixed(level, dual)

    def _rise(self, level: _Level, dual: Dual, primal: Primal, share: float) -> None:
        from planner.solver.primal import weight_of

        now = time.perf_counter()
        due, promise = now, float("inf")
        until = now + share * (self.deadline - now)

        def after_round() -> None:
            nonlocal due, promise
            self._say(level.offset + dual.bound)
            began, hope = time.perf_counter(), _promise(dual, primal)
            if began < due or hope >= promise:
                return
            promise = hope
            weight, until = weight_of(dual, dual.bound), began + _READ
            if primal.improve(dual.labels, weight, stopped=lambda: self._hurry() or time.perf_counter() > until):
                self._take_labels(level, primal)
            due = time.perf_counter() + 2 * (time.perf_counter() - began)

        if self.best is None:
            dual.begin(primal.offer)
            self._take_labels(level, primal)
            if primal.labels is not None:
                primal.improve(primal.labels, weight_of(dual, dual.bound), stopped=self._hurry)
                self._take_labels(level, primal)
        else:
            primal.improve(_labels(level.project(self.best)), weight_of(dual, self.cost), stopped=self._hurry)
        dual.rise(until, self._hurry, after_round)

    def _read_off(self, level: _Level, dual: Dual, primal: Primal) -> None:
        """The choices that the best prices give, and ones a little above them."""
        from planner.solver.primal import weight_of

        now = time.perf_counter()
        until = now + _READING * (self.deadline - now)
        for number, factor in enumerate(_ABOVE):
            costs, read = dual.priced(dual.prices * factor), []
            for index in range(8):
                dual.sweep(costs, index % 2 == 0)
                read.append((_promise(dual, primal), index, dual.labels.copy()))
            if number == 0 or time.perf_counter() < until:  # the best prices' own choice is worth all the time that it takes
                primal.improve(min(read)[2], weight_of(dual, dual.bound), stopped=self._hurry)
        self._take_labels(level, primal)
        dual.settle()

    def _any_that_fits(self, level: _Level, dual: Dual, primal: Primal) -> None:
        """Where no choice read off came to fit: prices ever higher, until memory is all that counts."""
        from planner.solver.primal import weight_of

        prices = dual.prices.copy()
        for _ in range(12):
            prices *= 2.0
            costs = dual.priced(prices)
            for index in range(6):
                dual.sweep(costs, index % 2 == 0)
            weight = weight_of(dual, dual.bound) * 16
            if self._hurry() or primal.improve(dual.labels, weight, stopped=self._hurry):
                break
        if primal.labels is None and not self._hurry():
            found = smallest_peak(level.problem, self.deadline, self.stopped)
            if found.choice is not None:
                primal.offer(_labels(found.choice))
            self.exhausted = found.peak > level.problem.limit
        self._take_labels(level, primal)
        dual.settle()

    def _windows(self, level: _Level, dual: Dual, primal: Primal) -> None:
        """Large-neighbourhood search for some seconds."""
        from planner.solver.primal import Windows

        if primal.labels is None:
            return
        windows = Windows(primal, dual)
        until = min(self.deadline, time.perf_counter() + _SEARCH)
        while time.perf_counter() < until and not self.stopped():
            if windows.step(until, self.stopped):
                self._take_labels(level, primal)

    def _fixed(self, level: _Level, dual: Dual) -> _Level:
        """The level without what no better choice takes."""
        dual.settle(0)
        states = dual.fixed(self.cost - level.offset)
        kept = np.split(states, np.searchsorted(states, dual.flat.first[1:-1]))
        if len(states) == len(dual.flat.costs):
            return level
        reduced = reduce(level.problem, kept=[k - first for k, first in zip(kept, dual.flat.first, strict=False)])
        return _Level(
            reduced.problem, Rows(reduced.problem), level.offset + reduced.offset, (*level.chain, reduced),
            level.clock[reduced.clock],
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------ what is known

    def _hurry(self) -> bool:
        return self.stopped() or time.perf_counter() >= self.deadline

    def _say(self, bound: float) -> None:
        """Tells of progress; a bound that is told is never taken back."""
        self.shown = max(self.shown, min(bound, self.cost))
        self.tell(self.cost, self.shown)

    def _take_labels(self, level: _Level, primal: Primal) -> None:
        if primal.labels is not None:
            self._take(level, tuple(primal.labels.tolist()), level.offset + primal.cost)

    def _take(self, level: _Level, choice: Choice, near: float = -float("inf")) -> None:
        """A choice of a level, taken if it is the best of the whole problem so far, by the problem's own numbers."""
        if not near < self.cost - 1e-9 * abs(self.cost) and np.isfinite(self.cost):
            return
        whole = level.restore(choice)
        cost = self.whole.cost(whole)
        if cost < self.cost and self.whole.fits(whole):
            self.best, self.cost = whole, cost
            self._say(self.bound)

    def _raise(self, bound: float) -> None:
        """A bound of what is left. Where fixing took out all that does not better the best, the best's cost is the bound."""
        bound = min(bound, self.cost)
        if bound > self.bound:
            self.bound = bound
            self._say(self.bound)
        if bound == float("inf"):
            self.exhausted = True

    def _carried(self, level: _Level) -> Array | None:
        """The last prices in the level's times."""
        clock = level.clock
        if not self.prices or not len(clock):
            return None
        out = np.zeros(len(clock))
        for at, price in self.prices.items():
            out[min(int(np.searchsorted(clock, at)), len(clock) - 1)] += price
        return out

    def _remember(self, level: _Level, dual: Dual) -> None:
        clock = level.clock
        self.prices = {int(clock[t]): float(dual.prices[t]) for t in np.flatnonzero(dual.prices)}

    def solution(self) -> Solution:
        """What was found."""
        elapsed = time.perf_counter() - self.began
        if self.best is not None:
            bound = self.cost if self.exhausted else min(self.bound, self.cost)
            proved = self.cost - bound <= TOLERANCE * abs(self.cost)
            return Solution(
                status="optimal" if proved else "feasible", choice=self.best, objective=self.cost, bound=bound, time_s=elapsed,
                num_variables=self.num_variables,
            )  # fmt: skip
        return self._nothing_fits(elapsed)

    def _nothing_fits(self, elapsed: float) -> Solution:
        """The leanest choice, and how lean any could be."""
        lean = smallest_peak(self.whole, time.perf_counter() + 10.0, self.stopped)
        choice = lean.choice
        if choice is not None and self.whole.fits(choice):
            self.best, self.cost, self.exhausted = choice, self.whole.cost(choice), False
            return self.solution()
        known = self.exhausted or lean.peak > self.whole.limit * (1 + 1e-9)
        objective = float("inf") if choice is None else self.whole.cost(choice)
        return Solution(
            status="infeasible" if known else "unknown", choice=choice or (), objective=objective, bound=self.bound,
            time_s=elapsed, num_variables=0, lean_bound=lean.peak, lean_at=lean.at,
            overflow=max(0.0, (self.whole.peak(choice) if choice else float("inf")) - self.whole.limit),
        )  # fmt: skip


def _sum_of_minima(problem: Problem) -> float:
    """A bound at once: every node and edge at its cheapest."""
    return float(sum(c.min() for c in problem.costs) + sum(e.cost.min() for e in problem.edges))


def _promise(dual: Dual, primal: Primal) -> float:
    """What the choice that the dual reads off costs, with what it is over the limit at the worst time charged."""
    over = max(0.0, float(primal.rows.excess(dual.labels).max(initial=0.0))) / dual.unit
    return primal.flat.cost(dual.labels) + _DEAR * over * max(float(dual.prices.sum()), abs(dual.bound))


def _labels(choice: Choice) -> Labels:
    return np.array(choice, dtype=np.int64)
