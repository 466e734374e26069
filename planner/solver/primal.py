"""The primal: choices that fit, made from what the dual reads off, improved by single and paired changes and by windows.

A choice read off the dual is repaired and improved at once by local search that charges for memory over the room; then windows of
growing size are solved exactly. Strategies that the dual finds dear are left out of a window at first.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np

from planner.solver.descent import one_opt, two_opt
from planner.solver.flat import Flat
from planner.solver.lagrange import Dual
from planner.solver.problem import Problem
from planner.solver.rows import Rows
from planner.solver.windows import Surroundings
from planner.solver.working import Labels

__all__ = ["Primal", "Windows", "weight_of"]

#: Rounds of repair, each charging memory twice as dearly, and passes of single changes in one.
_ROUNDS, _PASSES = 12, 10

#: Pairs that a window may have at first, and the seconds that it may take; it grows where it is solved in a quarter of them.
_PAIRS, _PATIENCE = 4_000, 4.0

#: Kinds of window: strategies a node that one considers, cheapest by the dual first, beside the incumbent's.
_KEPT = (5, 12, 40, 1000)


class Primal:
    """The best choice found so far: `labels`, None until one fits, and its `cost`."""

    def __init__(self, problem: Problem, flat: Flat, rows: Rows, seed: int = 0) -> None:
        self.problem, self.flat, self.rows = problem, flat, rows
        self.labels: Labels | None = None
        self.cost = float("inf")
        self.rng = np.random.default_rng(seed)
        usage_at = np.searchsorted(rows.node, np.arange(flat.num_nodes + 1))
        span_at = np.searchsorted(rows.owner, np.arange(len(rows.starts)))
        self.tables = (flat.costs, flat.first, flat.u, flat.v, flat.pairs, flat.table, flat.near, flat.at)
        self.memory = (usage_at, rows.starts, rows.nbytes, span_at, rows.lo, rows.hi, rows.times)

    def offer(self, labels: Labels) -> bool:
        """Takes a choice if it fits and is the best so far."""
        if not self.rows.fits(labels):
            return False
        cost = self.flat.cost(labels)
        if not cost < self.cost:
            return False
        self.labels, self.cost = labels.copy(), cost
        return True

    def improve(self, labels: Labels, weight: float, *, stopped: Callable[[], bool]) -> bool:
        """Repairs and improves a choice by local search; whether it became the best so far. `weight` is cost a byte over the room."""
        labels, excess = labels.copy(), self.rows.excess(labels)
        order, edges = np.arange(self.flat.num_nodes), np.arange(len(self.flat.u))
        for _ in range(_ROUNDS):
            for index in range(_PASSES):
                way = order if index % 2 == 0 else order[::-1].copy()
                if stopped() or not one_opt(*self.tables, *self.memory, excess, labels, way, weight):
                    break
            over = len(excess) and float(excess.max()) > self.rows.slack
            changed = 0
            if not over and not stopped():  # paired changes are dear, and repair little
                changed = two_opt(*self.tables, *self.memory, excess, labels, edges, weight)
            if stopped() or (not over and not changed):
                break
            weight *= 4.0 if over else 1.0
        return self.offer(labels)


class Windows:
    """Window after window over the incumbent of a `Primal`: many nodes with few strategies each, or few with many, in turn. The pairs
    that a window of a kind may have adapt to the time that such windows take."""

    def __init__(self, primal: Primal, dual: Dual) -> None:
        self.primal, self.dual = primal, dual
        self.around = Surroundings(primal.problem, primal.rows)
        self.pairs = dict.fromkeys(_KEPT, float(_PAIRS))
        self.kept = {count: self._kept(count) for count in _KEPT}

    def _kept(self, count: int) -> list[Labels]:
        first, marginals = self.dual.flat.first, self.dual.marginals
        pieces = (marginals[a:b] for a, b in itertools.pairwise(first))
        return [np.sort(np.argsort(piece, kind="stable")[:count]) for piece in pieces]

    def step(self, deadline: float, stopped: Callable[[], bool]) -> bool:
        """One window; whether it bettered the incumbent."""
        primal = self.primal
        assert primal.labels is not None
        began = time.perf_counter()
        count = _KEPT[int(primal.rng.integers(len(_KEPT)))]
        nodes = self._nodes(count)
        allowed = [np.unique(np.append(self.kept[count][n], primal.labels[n])) for n in nodes]
        found, proved = self.around.better(primal.labels, nodes, allowed, min(deadline, began + _PATIENCE), stopped)
        took = time.perf_counter() - began
        if not proved:
            self.pairs[count] = max(_PAIRS / 8, self.pairs[count] * 0.7)
        elif took < _PATIENCE / 8:
            self.pairs[count] *= 1.1
        return found is not None and primal.offer(found)

    def _nodes(self, count: int) -> list[int]:
        """A connected window of about as many pairs as windows of this kind may have, around a random node."""
        rng, near, kept = self.primal.rng, self.around.near, self.kept[count]
        found: set[int] = set()
        edge, pairs = [int(rng.integers(self.primal.flat.num_nodes))], 0.0
        while edge and pairs < self.pairs[count]:
            node = edge.pop(int(rng.integers(len(edge))))
            if node in found:
                continue
            found.add(node)
            for other, _ in near[node]:
                if other in found:
                    pairs += len(kept[node]) * len(kept[other])
                else:
                    edge.append(other)
        return sorted(found)


def weight_of(dual: Dual, cost: float) -> float:
    """What a byte over the room is charged at first: all prices together, or a share of the cost where there are none."""
    return max(float(dual.prices.sum()), 0.1 * abs(cost), 1e-9) / dual.unit
