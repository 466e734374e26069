"""Solves a large problem with memory of pairs. It is made small before that memory becomes nodes,
since those nodes would have most of its pairs of strategies.

Problem, memory of its pairs -> Solution. Leaving out the memory of pairs lets more choices fit and
makes none cheaper, so a bound under the memory of nodes alone is valid. Strategies with small
marginals over that bound are kept, few at first, then more, until a choice among them fits and is
near the bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.solver.exact.ilp import CHEAP, solve
from planner.solver.problem.pairs import PairUsage, with_pair_usages
from planner.solver.problem.problem import Choice, Edge, Problem
from planner.solver.problem.solution import TOLERANCE, Solution
from planner.solver.reduce.level import Level
from planner.solver.reduce.reduce import reduce
from planner.solver.reduce.working import Contradiction, Labels

__all__ = ["solve_with_pairs"]

INF = float("inf")

#: From this many pairs on it is worth it: the bound takes up to a quarter of a second, what is left
#: of the problem a fraction of the time that the whole would, and choices are better (t5 on 4 H100:
#: 10,000 to 20,000 pairs, 1 to 2 % above the bound instead of 5 to 13 %).
_LARGE = 5_000

#: Strategies are kept up to these marginals, as shares of the bound. A choice within a share
#: `_NEAR` of the bound is good enough. So is one within `_ENOUGH` that more strategies have not
#: improved by `_WORTH`, and any that they have not improved twice.
_KEPT, _NEAR, _ENOUGH, _WORTH = (1e-4, 1e-3, 5e-3, 0.02, 0.1), 5e-3, 0.03, 1e-3


def solve_with_pairs(
    problem: Problem,
    pairs: Sequence[PairUsage],
    *,
    time_limit: float,
    guess: Choice,
    stopped: Callable[[], bool],
    near: float = TOLERANCE,
) -> Solution:
    """The solution of the problem with the memory of its `pairs`, within a share `near` of the best
    if that is quicker. Its choice begins with the problem's own nodes; nodes of pairs may
    follow."""
    began = time.perf_counter()

    def left() -> float:
        return max(0.0, began + time_limit - time.perf_counter())

    best: Solution | None = None
    unimproved = 0
    for cheap in _cheap(problem, began + time_limit) if problem.num_pairs >= _LARGE else ():
        known = guess if best is None else best.choice[: len(problem.costs)]
        found = _solved(problem, pairs, cheap.kept, known, left(), stopped, near)
        before = INF if best is None else best.objective
        if found is not None and found.objective < before:
            best = replace(found, status="feasible", bound=cheap.bound_of(found))
        if stopped() or not left():
            break
        if best is not None:
            unimproved = unimproved + 1 if best.objective > before * (1 - _WORTH) else 0
            if best.objective <= cheap.near or unimproved > (best.objective > cheap.enough):
                break
    if best is not None:
        return best
    return solve(
        with_pair_usages(problem, pairs),
        guess=guess,
        time_limit=left(),
        stopped=stopped,
        near=near,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cheap:
    """The strategies `kept` of every node: all those in a choice that costs at most `upper`. No
    choice costs less than `bound`."""

    bound: float
    upper: float
    kept: list[Labels]

    def bound_of(self, found: Solution) -> float:
        """The bound on all choices, after the solution of those kept."""
        return min(found.objective, max(self.bound, min(found.bound, self.upper)))

    @property
    def near(self) -> float:
        """A choice of this cost is near the bound, or would be improved by no strategy left out."""
        return max(self.upper, self.bound + _NEAR * abs(self.bound))

    @property
    def enough(self) -> float:
        return self.bound + _ENOUGH * abs(self.bound)


def _cheap(problem: Problem, deadline: float) -> Iterator[_Cheap]:
    """Yields the strategies of every node with small marginals, more each time; yields nothing if
    no choice fits."""
    from planner.solver.large.within import risen

    try:
        level = Level.of(problem, [step for step in CHEAP if step != "chain"])
    except Contradiction:
        return
    if not level.problem.costs:
        return
    dual = risen(level, None, deadline)
    bound = level.offset + dual.certified()
    (reduced,) = level.chain
    for share in _KEPT:
        kept = [np.arange(len(costs)) for costs in problem.costs]
        dual.settle(0)
        upper = bound + share * abs(bound)
        few = dual.kept(upper - level.offset)
        for node, own, labels in zip(reduced.nodes, reduced.strategies, few, strict=True):
            kept[node] = own[labels]
        yield _Cheap(bound=bound, upper=upper, kept=kept)


def _solved(
    problem: Problem,
    pairs: Sequence[PairUsage],
    kept: list[Labels],
    guess: Choice,
    time_limit: float,
    stopped: Callable[[], bool],
    near: float,
) -> Solution | None:
    """The solution within the strategies `kept`, as one of the whole problem; None if no choice
    that fits was found."""
    try:
        kept = list(reduce(problem, ["forbid", "arcs"], kept=kept).strategies)
    except Contradiction:
        return None
    cut = replace(
        problem,
        costs=tuple(costs[few] for costs, few in zip(problem.costs, kept, strict=True)),
        edges=tuple(
            Edge(u=e.u, v=e.v, cost=e.cost[np.ix_(kept[e.u], kept[e.v])]) for e in problem.edges
        ),
        usages=tuple(
            replace(usage, nbytes=usage.nbytes[kept[usage.node]]) for usage in problem.usages
        ),
    )
    ends = [(problem.edges[pair.edge].u, problem.edges[pair.edge].v) for pair in pairs]
    few_pairs = [
        replace(p, nbytes=p.nbytes[np.ix_(kept[u], kept[v])])
        for p, (u, v) in zip(pairs, ends, strict=True)
    ]
    places = [np.flatnonzero(few == label) for few, label in zip(kept, guess, strict=True)]
    known = tuple(int(place[0]) for place in places) if all(map(len, places)) else None
    found = solve(
        with_pair_usages(cut, few_pairs),
        guess=known,
        time_limit=time_limit,
        stopped=stopped,
        near=near,
    )
    if found.status not in ("optimal", "feasible"):
        return None
    return replace(
        found, choice=tuple(int(few[label]) for few, label in zip(kept, found.choice, strict=False))
    )
