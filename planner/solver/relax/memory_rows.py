"""Memory in the bound: prices on the bytes held at critical times.

With prices p_t >= 0 on some times T, every choice that fits costs at least its cost with memory at
T priced, less sum p_t room_t. So the priced problem's bound less that sum bounds the limited
problem (Lagrange); its cheap choices tend to fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module

import numpy as np

from planner.solver.problem.problem import Problem
from planner.solver.relax.bound import Reparametrised, decode, reparametrise

__all__ = ["Priced", "price", "priced_problem"]

_ROUNDS, _HALVINGS, _SWEEPS = 6, 7, 40

#: Problems of so many edges are worth importing compiled handshakes for (a quarter of a second).
_COMPILED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """`moved` is the priced problem's reparametrisation under `prices`; `bound` bounds the
    limited problem; `choice` is the best one found that fits, None if none was found."""

    moved: Reparametrised
    prices: Mapping[int, float]
    bound: float
    choice: tuple[int, ...] | None


def priced_problem(problem: Problem, prices: Mapping[int, float]) -> Problem:
    """The problem with memory at the times of `prices` added to its costs, at that many cost
    units a byte."""
    costs = list(problem.costs)
    for usage in problem.usages:
        rate = sum(price * usage.times(at) for at, price in prices.items())
        if rate:
            costs[usage.node] = costs[usage.node] + rate * usage.nbytes
    return replace(problem, costs=tuple(costs))


def price(
    problem: Problem, start: tuple[int, ...], stopped: Callable[[], bool] = lambda: False
) -> Priced | None:
    """Prices under which cheap choices fit, found by bisection of one common price on a growing set
    of critical times; until `stopped`.

    None if no choice that fits was found at any price.
    """
    if len(problem.edges) >= _COMPILED:
        import_module("planner.solver.relax.handshakes")
    times = [int(problem.memory(start).argmax())]
    unit = abs(problem.cost(start)) / problem.limit
    best: Priced | None = None
    for _ in range(_ROUNDS):
        low, high = 0.0, unit
        for _ in range(_HALVINGS + 3):
            common = high if low == 0.0 else (low * high) ** 0.5
            trial = _trial(problem, {at: common / len(times) for at in times})
            best = _better(problem, best, trial)
            memory = problem.memory(trial.choice or start)
            if (memory[times] <= problem.limit).all():
                low, high = low or common / 64, common
            elif common >= high:
                low, high = common, common * 64
            else:
                low = common
            if stopped() or high / max(low, 1e-300) < 1.1:
                break
        over = int(problem.memory(trial.choice or start).argmax())
        if (
            stopped()
            or over in times
            or problem.memory(trial.choice or start)[over] <= problem.limit
        ):
            break
        times.append(over)
    return best if best is not None and best.choice is not None else None


def _trial(problem: Problem, prices: dict[int, float]) -> Priced:
    """The problem priced at `prices`; its `choice` may not fit."""
    priced = priced_problem(problem, prices)
    moved = reparametrise(priced, sweeps=_SWEEPS)
    bound = moved.bound - sum(price * problem.room(at) for at, price in prices.items())
    return Priced(moved=moved, prices=prices, bound=bound, choice=decode(priced, moved))


def _better(problem: Problem, best: Priced | None, trial: Priced) -> Priced:
    """The higher of the two bounds, with the cheaper choice that fits."""
    assert trial.choice is not None
    fits = bool((problem.memory(trial.choice) <= problem.limit).all()) and np.isfinite(
        problem.cost(trial.choice)
    )
    choice = trial.choice if fits else None
    if best is None:
        return replace(trial, choice=choice)
    choices = [c for c in (best.choice, choice) if c is not None]
    cheapest = min(choices, key=problem.cost, default=None)
    return replace(trial if trial.bound > best.bound else best, choice=cheapest)
