"""The smallest peak of memory that any choice has: for saying what a limit would have to be.

    minimise z   such that   sum_s m_t(s) x(s) <= room(t) + z limit   for every time t,   costs left out but for what they forbid

Without costs nearly everything reduces away. The reduction keeps the worst excess: a time goes only where another is at least as full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.solver.bound import decode, reparametrise
from planner.solver.memory import priced_problem
from planner.solver.polytope import Polytope
from planner.solver.problem import Choice, Edge, Problem, Table, forbids
from planner.solver.reduce import STEPS, Contradiction, reduce
from planner.solver.rows import Rows

__all__ = ["Peak", "leanest", "smallest_peak"]

#: Times that get a weight, and sweeps of message passing for each.
_TIMES, _SWEEPS = 12, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """No choice holds less than `peak`; `choice` is one that is near it, None where none was found, and `at` when it holds most.
    Infinite where no choice is possible."""

    peak: float
    choice: Choice | None
    at: int


def smallest_peak(problem: Problem, deadline: float, stopped: Callable[[], bool] = lambda: False) -> Peak:
    """A lower bound on every choice's peak, and a choice that comes near it (exactly, given the time)."""
    free = _without_costs(problem)
    try:
        reduced = reduce(free, [step for step in STEPS if step != "room"])
    except Contradiction:
        return Peak(peak=float("inf"), choice=None, at=0)
    rows = Rows(reduced.problem)
    start = _least(problem)
    if not reduced.problem.costs:
        only = reduced.restore(())  # what reduction leaves alone is least, where it is over the limit
        return _peak_of(problem, only, max(start, problem.peak(only) if not problem.fits(only) else start))
    program = Polytope(reduced.problem, rows, elastic=True, stopped=stopped)
    found = program.solve(deadline)
    if found.proved and found.bound == float("inf"):
        return Peak(peak=float("inf"), choice=None, at=0)
    bound = problem.limit + program.unit * found.bound if np.isfinite(found.bound) else -float("inf")
    if found.choice is None:
        return Peak(peak=max(start, bound), choice=None, at=0)
    whole = reduced.restore(found.choice)
    return _peak_of(problem, whole, max(start, bound if found.bound > 0 else start))


def leanest(problem: Problem, start: Choice) -> Peak:
    """As `smallest_peak`, quickly and not exactly: `start`, which is possible, or a leaner choice.

    Critical times are added one by one with equal weight; no choice holds less at its peak than the least of that mean.
    """
    free, base = _without_costs(problem), np.zeros(problem.horizon) if problem.base is None else problem.base
    best, bound = start, _least(problem)
    times = [int(problem.memory(start).argmax())]
    for _ in range(_TIMES):
        weights = {at: 1.0 / len(times) for at in times}
        priced = priced_problem(free, weights)
        moved = reparametrise(priced, sweeps=_SWEEPS)
        bound = max(bound, moved.bound + float(base[times].mean()))
        choice = decode(priced, moved)
        if np.isfinite(problem.cost(choice)) and problem.peak(choice) < problem.peak(best):
            best = choice
        most = int(problem.memory(choice).argmax())
        if most in times or problem.fits(best):
            break
        times.append(most)
    return Peak(peak=bound, choice=best, at=int(problem.memory(best).argmax()))


def _peak_of(problem: Problem, choice: Choice, bound: float) -> Peak:
    held = problem.memory(choice)
    most = float(held.max(initial=0))
    bound = most if bound > most * (1 - 1e-7) else bound
    return Peak(peak=bound, choice=choice, at=int(held.argmax()) if len(held) else 0)


def _least(problem: Problem) -> float:
    """The largest, over time, of what all nodes' least usages add up to."""
    steps = np.zeros(problem.horizon + 1)
    for usage in problem.usages:
        for start, end, times in usage.spans:
            steps[start] += float(usage.nbytes.min()) * times
            steps[end] -= float(usage.nbytes.min()) * times
    held = np.cumsum(steps[:-1]) + (0.0 if problem.base is None else problem.base)
    return float(held.max(initial=0.0))


def _without_costs(problem: Problem) -> Problem:
    def free(table: Table) -> Table:
        return np.where(forbids(table), np.inf, 0.0)

    return Problem(
        costs=tuple(map(free, problem.costs)), edges=tuple(Edge(u=e.u, v=e.v, cost=free(e.cost)) for e in problem.edges),
        usages=problem.usages, horizon=problem.horizon, limit=problem.limit, base=problem.base,
    )  # fmt: skip
