"""A solver's answer: the choice found, and the bound proved."""

from __future__ import annotations

import time
from dataclasses import dataclass

from planner.solver.problem.problem import Choice, Problem

__all__ = ["TOLERANCE", "Solution", "found", "not_found"]

#: `optimal` means that bound and cost meet within this share of the cost.
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """`status` is `optimal` (bound and objective meet within `TOLERANCE`), `feasible` (the time
    was up first), `infeasible` (nothing fits: `choice` is then the leanest found, `overflow` the
    bytes that it lacks, `lean_bound` a lower bound on any peak, at time `lean_at`; if every choice
    is forbidden, `objective` is infinite) or `unknown` (the time was up before any choice that
    fits was found). `gap` is (objective - bound) / objective."""

    status: str
    choice: Choice
    objective: float
    bound: float
    time_s: float
    num_variables: int
    overflow: float = 0.0
    lean_bound: float = 0.0
    lean_at: int = 0

    @property
    def gap(self) -> float:
        return (
            0.0
            if self.objective <= self.bound
            else (self.objective - self.bound) / max(abs(self.objective), 1e-30)
        )


def found(
    problem: Problem, choice: Choice, *, bound: float, began: float, num_variables: int
) -> Solution:
    """The solution for a choice that fits, `optimal` if the bound meets its cost."""
    cost = problem.cost(choice)
    bound = min(bound, cost)
    return Solution(
        status="optimal" if cost - bound <= TOLERANCE * abs(cost) else "feasible",
        choice=choice,
        objective=cost,
        bound=bound,
        time_s=time.perf_counter() - began,
        num_variables=num_variables,
    )


def not_found(
    problem: Problem,
    choice: Choice | None,
    *,
    began: float,
    bound: float,
    lean: float,
    at: int = 0,
    known: bool,
) -> Solution:
    """The solution if no choice that fits was found: the leanest choice, if any, and whether it is
    `known` that none fits."""
    return Solution(
        status="infeasible" if known else "unknown",
        choice=choice or (),
        bound=bound,
        lean_bound=lean,
        lean_at=at,
        objective=float("inf") if choice is None else problem.cost(choice),
        time_s=time.perf_counter() - began,
        num_variables=0,
        overflow=0.0 if choice is None else max(0.0, problem.peak(choice) - problem.limit),
    )
