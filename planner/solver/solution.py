"""What a solver found, and what it proved."""

from __future__ import annotations

from dataclasses import dataclass

from planner.solver.problem import Choice

__all__ = ["TOLERANCE", "Solution"]

#: `optimal` means that bound and cost meet within this share of the cost.
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """`status` is `optimal` (bound and objective meet within `TOLERANCE`), `feasible` (the time came first), `infeasible` (nothing
    fits: `choice` is then the leanest found, `overflow` what it lacks, `lean_bound` a lower bound on any peak, at time `lean_at`;
    where the pairs leave no choice at all, `objective` is infinite) or `unknown` (the time came before any choice that fits). `gap`
    is (objective - bound) / objective."""

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
        return 0.0 if self.objective <= self.bound else (self.objective - self.bound) / max(abs(self.objective), 1e-30)
