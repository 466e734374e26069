"""Solves the planner's problems to the optimum: reduce, bound by message passing, prove by the
integer program of `pulp_model`.

Before PuLP, message passing (with prices on memory, if the limit binds) gives a bound L and rules
out every choice and pair that no solution of cost <= L + slack can contain. If the reduced
program's optimum is within L + slack, it is the optimum of the whole problem; else the slack grows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from planner.graph.checking import checked
from planner.solver.exact.pulp_model import Model, Start
from planner.solver.large.incumbent import Incumbent
from planner.solver.problem.check import solution_faults
from planner.solver.problem.pairs import completed
from planner.solver.problem.problem import Choice, Problem
from planner.solver.problem.solution import TOLERANCE, Solution, found, not_found
from planner.solver.reduce.level import Level, sum_of_minima
from planner.solver.reduce.reduce import STEPS, Contradiction
from planner.solver.reduce.rows import Rows
from planner.solver.relax.bound import COMPILED, Reparametrised, decode, reparametrise
from planner.solver.relax.memory_rows import price
from planner.solver.relax.peak import Peak, leanest, smallest_peak
from planner.solver.relax.polytope import Polytope

__all__ = ["CHEAP", "solve"]

INF = float("inf")

#: If the quick ways find no choice that fits, an integer program looks for the leanest one: for at
#: most this many seconds and, as a rule, only in problems of up to this many pairs.
_PATIENCE, _FEW_PAIRS = 20.0, 20_000

#: The same if a choice near the bound is good enough: to know exactly how much is missing in a
#: problem of 15,000 pairs took 5 to 15 seconds.
_FEW_PAIRS_IF_NEAR = 5_000

#: Dominance compares every two of a node's hundreds of strategies. It would take half of the time
#: to plan llama on 8 devices, for what message passing rules out anyway.
CHEAP = [step for step in STEPS if step != "dominate"]

#: In a problem of this many pairs, chains are not contracted: the tables between their ends would
#: be the largest.
_LARGE = 1_000_000

#: Rounds of message passing, sweeps in each, and how many remaining choices count as few.
_ROUNDS, _SWEEPS, _FEW = 8, 25, 150

#: An integer program of more variables than this takes longer to build than it is worth: the bound
#: stays where it is.
_MOST = 15_000

#: The same if a choice near the bound is good enough: programs of more variables than this rarely
#: find a better choice than smaller ones did, and take seconds to prove it.
_MOST_IF_NEAR = 5_000

#: With a memory limit, a problem of more pairs is narrowed first: the integer program is rarely
#: small enough, and reading a choice off the prices alone finds poor ones. If a choice near the
#: bound is good enough, smaller ones are too: that nearly always finds one, in a tenth of the time.
_NARROWED, _NARROWED_IF_NEAR = 15_000, 3_000

#: Then narrowing is enough if its choice is within this share of the bound: an integer program
#: closes the rest of the gap, but takes ten times as long.
_ENOUGH = 0.03


class _Undecided(Exception):
    """No choice that fits was found, nor was it proved that there is none; no choice costs less
    than `bound`."""

    def __init__(self, bound: float) -> None:
        super().__init__(bound)
        self.bound = bound


def solve(
    problem: Problem,
    *,
    time_limit: float = 60.0,
    guess: Choice | None = None,
    stopped: Callable[[], bool] = lambda: False,
    near: float = TOLERANCE,
) -> Solution:
    """The best choice, with its proof. `guess` is a choice that may be good: the nearer it is to
    the best, the less is left for the integer program. A choice within a share `near` of the bound
    is good enough. After `time_limit` seconds, or as soon as it is `stopped`, the best choice so
    far, or the leanest if none fits, with the bound proved so far."""
    began = time.perf_counter()
    best = Incumbent(problem, began + time_limit, lambda cost, bound: None, stopped, near)
    if guess is not None:
        best.take(completed(problem, guess))
    variables = 0
    try:
        left, narrowed = _reduced(problem, best)
        done = narrowed and near > TOLERANCE and best.cost <= best.bound * (1 + _ENOUGH)
        if not done and (left.num_pairs <= COMPILED or problem.limit == INF):
            # Narrowing has loaded the compiled code.
            variables = _by_program(left, best, compiled=len(left.chain) > 1)
    except Contradiction:
        best.exhausted = True  # no possible choice fits, or none that is left is better
    except _Undecided as undecided:
        best.raise_bound(left.offset + undecided.bound)
    if best.choice is None:
        return _infeasible(problem, guess, best, began)
    bound = best.cost if best.exhausted else best.bound
    solution = found(problem, best.choice, bound=bound, began=began, num_variables=variables)
    checked("solving", lambda: solution_faults(problem, solution))
    return solution


def _reduced(problem: Problem, best: Incumbent) -> tuple[Level, bool]:
    """The problem reduced; if it has many pairs, also narrowed to what may improve on the best
    (then also `True`). Choices found on the way go into `best`."""
    steps = CHEAP if problem.num_pairs < _LARGE else [step for step in CHEAP if step != "chain"]
    first = Level.of(problem, steps)
    few = _NARROWED_IF_NEAR if best.near > TOLERANCE else _NARROWED
    if first.num_pairs <= (COMPILED if problem.limit == INF else few):
        return first, False
    from planner.solver.large.narrow import narrow
    from planner.solver.large.within import narrow_within

    if problem.limit < INF:
        best.raise_bound(first.offset + sum_of_minima(first.problem))
        return narrow_within(first, CHEAP, best, few), True
    left, met = narrow(first, CHEAP, best.cost, best.hurry)
    if met is not None:
        best.take(met)
    return left, True


def _by_program(left: Level, best: Incumbent, compiled: bool) -> int:
    """Solves what is left by integer programs, as far as they reach; returns the number of
    variables of the largest."""
    if best.choice is not None and best.bound > -INF and best.over():
        return 0
    start = _start(left.problem, compiled, best)
    best.take(left.restore(start.choice))
    best.raise_bound(left.offset + start.bound)
    if not left.problem.costs or (best.near > TOLERANCE and best.over()):
        return 0
    better, bound, variables = _improve(left.problem, start, best.cost - left.offset, best)
    best.take(left.restore(better))
    best.raise_bound(left.offset + bound)
    return variables


def _improve(
    problem: Problem, start: Start, upper: float, known: Incumbent
) -> tuple[Choice, float, int]:
    """The best choice that programs within a growing slack find, the bound, and the number of
    variables of the largest. `upper` is the cost of a known choice, of `start` or another."""
    whole = max(upper - start.bound, 1e-9 * abs(start.bound))
    least = min(whole, 0.005 * abs(start.bound))
    slack = max(0.1 * whole, least)
    most = _MOST_IF_NEAR if known.near > TOLERANCE else _MOST
    if _num_kept(problem, start, slack) > most:  # the known choice is far from the bound
        slack = least
    best, bound, variables = start.choice, start.bound, 0
    while not known.hurry() and _num_kept(problem, start, slack) <= most:
        model = Model(problem, start, slack * (1 + 1e-9))
        variables = max(variables, model.num_variables)
        left = max(1.0, known.deadline - time.perf_counter())
        rough = known.near > TOLERANCE and np.isfinite(known.cost)
        near = known.near * abs(known.cost) if rough else 0.0
        found = model.best_fitting(left, near)
        if found is not None and problem.cost(found.choice) < problem.cost(best):
            best = found.choice
        if found is None and not model.exhausted:
            break
        proved = (
            slack >= whole
            if found is None
            else problem.cost(found.choice) <= start.bound + slack or slack >= whole
        )
        if proved:
            inside = found.bound if found is not None else INF
            bound = min(inside, start.bound + slack)
            break
        slack = min(whole, 4 * slack)
    return best, max(start.bound, bound), variables


def _start(problem: Problem, compiled: bool, known: Incumbent) -> Start:
    """The bound and a first choice. Raises Contradiction if no choice is possible, or none fits."""
    if not problem.costs:
        nothing = Reparametrised(nodes=(), edges=(), bound=0.0, converged=True)
        return Start(moved=nothing, prices={}, bound=0.0, choice=())
    moved, choice = _moved(problem, compiled, known)
    if not np.isfinite(problem.cost(choice)):
        choice = _possible(problem)
    if problem.limit == INF or problem.fits(choice):
        return Start(moved=moved, prices={}, bound=moved.bound, choice=choice)
    priced = price(problem, choice, known.hurry)
    if priced is not None and priced.choice is not None:
        better = priced if priced.bound > moved.bound else None
        return Start(
            moved=better.moved if better else moved,
            prices=better.prices if better else {},
            bound=max(priced.bound, moved.bound),
            choice=priced.choice,
        )
    lean = _leanest(problem, choice, known)
    if lean.choice is None or not problem.fits(lean.choice):
        raise Contradiction if lean.peak > problem.limit else _Undecided(moved.bound)
    return Start(moved=moved, prices={}, bound=moved.bound, choice=lean.choice)


def _leanest(problem: Problem, possible: Choice, known: Incumbent) -> Peak:
    """A choice that fits, or the leanest found; exactly, if the quick way leaves that open and the
    problem is small."""
    lean = leanest(problem, possible)
    assert lean.choice is not None
    if (
        problem.fits(lean.choice)
        or lean.peak > problem.limit
        or known.hurry()
        or _num_possible(problem) > _FEW_PAIRS
    ):
        return lean
    exact = smallest_peak(problem, _patience(known), known.hurry)
    return (
        lean
        if exact.choice is None or problem.peak(exact.choice) > problem.peak(lean.choice)
        else exact
    )


def _num_possible(problem: Problem) -> int:
    return sum(int(np.isfinite(edge.cost).sum()) for edge in problem.edges)


def _possible(problem: Problem) -> Choice:
    """A choice that nothing forbids, by integer program: used if the quick ways find none."""
    free = replace(problem, limit=INF, base=None)
    found = Polytope(free, Rows(free)).solve(time.perf_counter() + _PATIENCE)
    if found.choice is None:
        raise Contradiction
    return found.choice


def _infeasible(problem: Problem, guess: Choice | None, best: Incumbent, began: float) -> Solution:
    """The solution if nothing fits: the leanest choice found, or none if every choice is
    forbidden."""
    if guess is not None and not problem.cost(completed(problem, guess)) < INF:
        guess = None
    if guess is None and problem.limit < INF:
        left = max(0.0, best.deadline - time.perf_counter())
        guess = (
            solve(replace(problem, limit=INF), time_limit=left, stopped=best.stopped).choice or None
        )
    if guess is None:
        return not_found(problem, None, began=began, bound=INF, lean=INF, known=True)
    lean = leanest(problem, completed(problem, guess))
    if not best.hurry() and _worth_proving(problem, lean, best):
        exact = smallest_peak(problem, _patience(best), best.stopped)
        lean = (
            exact
            if exact.choice is not None
            and problem.peak(exact.choice) <= problem.peak(lean.choice or ())
            else lean
        )
    known = lean.peak > problem.limit
    return not_found(
        problem,
        lean.choice,
        began=began,
        bound=INF if known else -INF,
        lean=lean.peak,
        at=lean.at,
        known=known,
    )


def _worth_proving(problem: Problem, lean: Peak, best: Incumbent) -> bool:
    """Whether an integer program should find the leanest choice: if it is open whether one fits; or
    to say how much is missing, if the problem is small."""
    few = _FEW_PAIRS if best.near <= TOLERANCE else _FEW_PAIRS_IF_NEAR
    return lean.peak <= problem.limit or _num_possible(problem) <= few


def _patience(best: Incumbent) -> float:
    """Until when an integer program is asked for the leanest choice."""
    return min(best.deadline, time.perf_counter() + _PATIENCE)


def _num_kept(problem: Problem, start: Start, slack: float) -> int:
    """About how many variables the integer program has within `slack`."""
    kept = [n - n.min() <= slack for n in start.moved.nodes]
    pairs = (
        t[np.ix_(kept[e.u], kept[e.v])]
        for e, t in zip(problem.edges, start.moved.edges, strict=True)
    )
    return sum(int(k.sum()) for k in kept) + sum(
        int((table[table < INF] <= table.min() + slack).sum()) for table in pairs
    )


def _moved(
    problem: Problem, compiled: bool, known: Incumbent
) -> tuple[Reparametrised, tuple[int, ...]]:
    """Message passing until it has converged, or has left so few choices that the integer program
    is quicker; returns the moved costs and a choice."""
    moved = None
    for _ in range(_ROUNDS):
        moved = reparametrise(problem, sweeps=_SWEEPS, start=moved, compiled=compiled)
        choice = decode(problem, moved)
        settled = moved.converged or not np.isfinite(moved.bound)
        if settled or known.hurry() or moved.kept(problem.cost(choice) - moved.bound) <= _FEW:
            break
    assert moved is not None
    return moved, choice
