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
from dataclasses import replace

import numpy as np

from planner.solver.exact.ilp import CHEAP, solve
from planner.solver.problem.pairs import PairUsage, with_pair_usages
from planner.solver.problem.problem import Choice, Edge, Problem
from planner.solver.problem.solution import TOLERANCE, Solution
from planner.solver.reduce.level import Level
from planner.solver.reduce.reduce import reduce
from planner.solver.reduce.working import Contradiction, Labels

__all__ = ["solve_with_pairs"]

#: From this many pairs on it is worth it; the tables of two mesh axes have fewer.
_LARGE = 1_000_000

#: Strategies are kept up to these marginals, as shares of the bound; a choice is near the bound if
#: it costs at most a share `_NEAR` more.
_KEPT, _NEAR = (1e-4, 5e-3, 0.02, 0.1), 0.03


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
    for bound, kept in _cheap(problem, began + time_limit) if problem.num_pairs >= _LARGE else ():
        found = _solved(problem, pairs, kept, guess, left(), stopped)
        if found is not None and (best is None or found.objective < best.objective):
            best = replace(found, status="feasible", bound=min(bound, found.objective))
        if stopped() or (best is not None and best.objective <= bound + _NEAR * abs(bound)):
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


def _cheap(problem: Problem, deadline: float) -> Iterator[tuple[float, list[Labels]]]:
    """Yields a bound and the strategies of every node with small marginals, more each time; yields
    nothing if no choice fits."""
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
        few = dual.kept(bound + share * abs(bound) - level.offset)
        for node, own, labels in zip(reduced.nodes, reduced.strategies, few, strict=True):
            kept[node] = own[labels]
        yield bound, kept


def _solved(
    problem: Problem,
    pairs: Sequence[PairUsage],
    kept: list[Labels],
    guess: Choice,
    time_limit: float,
    stopped: Callable[[], bool],
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
        with_pair_usages(cut, few_pairs), guess=known, time_limit=time_limit, stopped=stopped
    )
    if found.status not in ("optimal", "feasible"):
        return None
    return replace(
        found, choice=tuple(int(few[label]) for few, label in zip(kept, found.choice, strict=False))
    )
