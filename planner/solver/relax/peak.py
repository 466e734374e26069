"""The smallest peak of memory of any choice, to say what the limit would have to be.

    minimise z   such that   sum_s m_t(s) x(s) <= room(t) + z limit   for every time t

Costs are left out but for what they forbid. Without costs, nearly everything reduces away. The
reduction keeps the worst excess: a time is dropped only if another is at least as full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.solver.problem.problem import Array, Choice, Edge, Numbers, Problem, forbids
from planner.solver.reduce.reduce import STEPS, Contradiction, reduce
from planner.solver.reduce.rows import Rows
from planner.solver.relax.polytope import Polytope

__all__ = ["Peak", "leanest", "smallest_peak"]

#: Rounds, sweeps in each, how strongly a full time draws weight, and how near bound and choice must
#: be.
_ROUNDS, _SWEEPS, _PULL, _NEAR = 60, 3, 2.0, 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """No choice has a peak below `peak` bytes, infinite if no choice is possible. `choice` is one
    near it, None if none was found, and `at` the time at which it holds most."""

    peak: float
    choice: Choice | None
    at: int


def smallest_peak(
    problem: Problem, deadline: float, stopped: Callable[[], bool] = lambda: False
) -> Peak:
    """A lower bound on every choice's peak, and a choice near it (exact, given enough time)."""
    free = _without_costs(problem)
    try:
        reduced = reduce(free, [step for step in STEPS if step != "room"])
    except Contradiction:
        return Peak(peak=float("inf"), choice=None, at=0)
    rows = Rows(reduced.problem)
    start = _least(problem)
    if not reduced.problem.costs:
        only = reduced.restore(())  # reduction keeps the least peak only if that is over the limit
        return _peak_of(
            problem, only, max(start, problem.peak(only) if not problem.fits(only) else start)
        )
    program = Polytope(reduced.problem, rows, elastic=True, stopped=stopped)
    found = program.solve(deadline)
    if found.proved and found.bound == float("inf"):
        return Peak(peak=float("inf"), choice=None, at=0)
    bound = (
        problem.limit + program.unit * found.bound if np.isfinite(found.bound) else -float("inf")
    )
    if found.choice is None:
        return Peak(peak=max(start, bound), choice=None, at=0)
    whole = reduced.restore(found.choice)
    return _peak_of(problem, whole, max(start, bound if found.bound > 0 else start))


def leanest(problem: Problem, start: Choice | None) -> Peak:
    """Like `smallest_peak`, in half a second and not exact: a lean choice, or `start` if that is
    leaner.

    Every weighting of the times bounds all peaks: the worst time holds no less than the weighted
    mean, which message passing bounds. Weights follow the memory of the choices read off
    (multiplicative weights), until the bound is near their peak or one fits.
    """
    from planner.solver.relax.flat import Flat
    from planner.solver.relax.lagrange import Dual

    reduced = reduce(_without_costs(problem), ["forbid", "arcs"])
    rows = Rows(reduced.problem)
    dual = Dual(Flat.of(reduced.problem), rows)
    base: Array = problem.limit - rows.room
    best, bound, pull = dual.labels.copy(), _least(problem), np.zeros(rows.horizon)
    least = float("inf")
    for _ in range(_ROUNDS if rows.horizon else 0):
        weights = np.exp(pull - pull.max())
        weights /= weights.sum()
        costs = rows.charged(weights)
        for index in range(_SWEEPS):
            mean = dual.sweep(costs, index % 2 == 0)
        bound = max(bound, (mean + float((weights * base).sum())) * (1 - 1e-9))
        held = rows.held_by(dual.labels) + base
        if held.max() < least and np.isfinite(dual.flat.cost(dual.labels)):
            best, least = dual.labels.copy(), float(held.max())
        if least <= problem.limit or bound >= (1 - _NEAR) * least:
            break
        pull += _PULL * (held / max(held.max(), 1e-30) - 1.0)
    found = (
        reduced.restore(tuple(best.tolist())) if least < float("inf") or not rows.horizon else start
    )
    leaner = [c for c in (found, start) if c is not None and np.isfinite(problem.cost(c))]
    choice = min(leaner, key=problem.peak, default=None)
    return Peak(
        peak=bound, choice=choice, at=0 if choice is None else int(problem.memory(choice).argmax())
    )


def _peak_of(problem: Problem, choice: Choice, bound: float) -> Peak:
    held = problem.memory(choice)
    most = float(held.max(initial=0))
    bound = most if bound > most * (1 - 1e-7) else bound
    return Peak(peak=bound, choice=choice, at=int(held.argmax()) if len(held) else 0)


def _least(problem: Problem) -> float:
    """The maximum, over time, of the sum of all nodes' least usages."""
    steps = np.zeros(problem.horizon + 1)
    for usage in problem.usages:
        for start, end, times in usage.spans:
            steps[start] += float(usage.nbytes.min()) * times
            steps[end] -= float(usage.nbytes.min()) * times
    held = np.cumsum(steps[:-1]) + (0.0 if problem.base is None else problem.base)
    return float(held.max(initial=0.0))


def _without_costs(problem: Problem) -> Problem:
    def free(table: Numbers) -> Numbers:
        return np.where(forbids(table), np.inf, 0.0)

    return Problem(
        costs=tuple(map(free, problem.costs)),
        edges=tuple(Edge(u=e.u, v=e.v, cost=free(e.cost)) for e in problem.edges),
        usages=problem.usages,
        horizon=problem.horizon,
        limit=problem.limit,
        base=problem.base,
    )
