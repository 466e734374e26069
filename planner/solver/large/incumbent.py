"""The state of a search: the best choice of the whole problem, the best bound, and whether there is
anything left to do.

Shared by the threads of a search. Every change is made under one lock, and reported.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from planner.solver.problem.problem import Choice, Problem
from planner.solver.problem.solution import TOLERANCE

__all__ = ["Incumbent", "Tell"]

#: Called with the cost of the best choice, infinite before there is one, and the bound.
Tell = Callable[[float, float], None]


class Incumbent:
    """`choice` costs `cost` by the problem's own numbers; no choice costs less than `bound`.
    `exhausted`: it was proved that there is no choice, or no better one; `ended`: the threads of
    the search are to end. A choice within a share `near` of the bound is good enough."""

    def __init__(
        self,
        problem: Problem,
        deadline: float,
        tell: Tell,
        stopped: Callable[[], bool],
        near: float = TOLERANCE,
    ) -> None:
        self.problem, self.deadline, self.stopped, self.near = problem, deadline, stopped, near
        self.choice: Choice | None = None
        self.cost, self.bound = float("inf"), -float("inf")
        self.exhausted = self.ended = False
        self._tell, self._told, self._lock = tell, -float("inf"), threading.RLock()

    def hurry(self) -> bool:
        """Whether there is no time left."""
        return self.stopped() or self.ended or time.perf_counter() >= self.deadline

    def over(self) -> bool:
        """Whether there is nothing left to do, or no time to do it."""
        return self.exhausted or self._proved() or self.hurry()

    def _proved(self) -> bool:
        return self.choice is not None and self.cost - self.bound <= self.near * abs(self.cost)

    def take(self, choice: Choice) -> bool:
        """Takes a choice if it is the best so far by the problem's own numbers; returns whether it
        was."""
        cost = self.problem.cost(choice)
        if not (cost < self.cost and self.problem.fits(choice)):
            return False
        with self._lock:
            if not cost < self.cost:
                return False
            self.choice, self.cost = choice, cost
        self.say(self.bound)
        return True

    def bettered_by(self, cost: float) -> bool:
        """Whether a cost, up to rounding, may be below the best."""
        return cost < self.cost - 1e-9 * abs(self.cost) or not np.isfinite(self.cost)

    def raise_bound(self, bound: float) -> None:
        """Raises the bound to that of what is left. It is at most the best cost, since fixing has
        removed only choices that are no better."""
        with self._lock:
            self.bound = max(self.bound, min(bound, self.cost))
            self.exhausted = self.exhausted or self.bound == float("inf")
        self.say(self.bound)

    def say(self, bound: float) -> None:
        """Reports progress; a reported bound never falls again."""
        with self._lock:
            self._told = max(self._told, min(bound, self.cost))
            self._tell(self.cost, self._told)
