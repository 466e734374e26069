"""The driver of annealing by trees: it watches memory only at the times that bind, and keeps draws
near the limit by prices.

Of thousands of times, a few dozen bind. A block of moves that goes over the limit at another time
is undone, and that time is watched from then on. Between blocks, a time's price rises if memory is
at its limit and falls if much is left. Effort is counted in moves, not in seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.solver.large.forest import Graph, Held, anneal
from planner.solver.problem.problem import Array, Problem
from planner.solver.reduce.rows import Rows
from planner.solver.reduce.working import Labels
from planner.solver.relax.flat import Flat

__all__ = ["Annealer", "Run"]

#: Moves between two checks of all times and updates of prices, and the most nodes of a tree.
_BLOCK, _MOST = 4_000, 20

#: Gumbel numbers that are drawn once; each tree uses a stretch of them.
_NOISE = 100_000

#: A price is multiplied by `_UP` if less than `_TIGHT` of the limit is left, by `_DOWN` if more
#: than `_LOOSE` is.
_UP, _DOWN, _TIGHT, _LOOSE = 1.1, 0.95, 0.001, 0.003

#: Forbidden pairs cost this many times the largest cost, and not infinity: a choice with some can
#: be improved step by step.
_DEAR = 10.0

#: A price that rises is at least this share of the mean one.
_LEAST = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One annealing run: its temperatures at start and end, in units of cost; its moves; its
    seed."""

    heat: float
    cool: float
    moves: int
    seed: int


class Annealer:
    """Anneals choices of one problem under memory prices, which it updates. `prices` are in cost
    per share of the limit, and so is `weight`, the charge for memory over the room."""

    def __init__(
        self, problem: Problem, flat: Flat, rows: Rows, prices: Array, weight: float
    ) -> None:
        self.flat, self.rows, self.weight = flat, rows, weight
        self.unit = rows.limit if 0 < rows.limit < float("inf") else 1.0
        self.graph = _graph(problem, flat)
        self.noise: Array = -np.random.default_rng(0).gumbel(
            size=_NOISE + int(np.diff(flat.first).max())
        )
        self.prices = prices.copy()
        self.times: Labels = np.flatnonzero(prices > 0)
        self.held = self._held()

    def run(
        self, labels: Labels, run: Run, found: Callable[[Labels], None], stopped: Callable[[], bool]
    ) -> Labels:
        """The labels at the end. `found` is called with the best labels of each block that fit."""
        blocks = max(1, run.moves // _BLOCK)
        labels = labels.copy()
        self._look_at(self._over(labels))
        for index in range(blocks):
            if stopped():
                break
            heats = [
                run.heat * (run.cool / run.heat) ** (part / blocks) for part in (index, index + 1)
            ]
            labels = self._block(labels, heats, run.seed + index, found)
        return labels

    def _block(
        self, labels: Labels, heats: list[float], seed: int, found: Callable[[Labels], None]
    ) -> Labels:
        before, best = labels.copy(), labels.copy()
        excess: Array = self.rows.excess(labels)[self.times] / self.unit
        dearer = anneal(
            self.graph,
            self.held,
            labels,
            excess,
            self.prices[self.times],
            self._priced(),
            self.weight,
            heats[0],
            heats[1],
            self.noise,
            _BLOCK,
            _MOST,
            seed,
            best,
        )
        over = np.union1d(self._over(labels), self._over(best))
        if self._look_at(over):
            return before
        if dearer < np.inf:
            found(best)
        self._steer(excess)
        return labels

    def _priced(self) -> Array:
        """The states' costs with memory priced."""
        return self.graph.costs + self.rows.charged(self.prices) / self.unit

    def _over(self, labels: Labels) -> Labels:
        return self.rows.over(self.rows.held_by(labels))

    def _look_at(self, times: Labels) -> bool:
        """Adds times to those watched; returns whether any was new."""
        together = np.union1d(self.times, times).astype(np.int64)
        if len(together) == len(self.times):
            return False
        self.times = together
        self.held = self._held()
        return True

    def _steer(self, excess: Array) -> None:
        prices = self.prices[self.times]
        least = _LEAST * prices.mean() if len(prices) else 0.0
        raised = np.maximum(prices * _UP, np.where(excess > 0, least, 0.0))
        self.prices[self.times] = np.where(
            excess > -_TIGHT, raised, np.where(excess < -_LOOSE, prices * _DOWN, prices)
        )

    def _held(self) -> Held:
        """Memory at the times watched, for `forest`."""
        rows, factor = self.rows, self._factors()
        usage_at = np.searchsorted(rows.node, np.arange(self.flat.num_nodes + 1))
        time: list[Labels] = []
        values: list[Array] = []
        for a, b in itertools.pairwise(usage_at.tolist()):
            here = np.flatnonzero(factor[a:b].any(axis=0))
            each = [
                np.outer(rows.nbytes[rows.starts[u] : rows.starts[u + 1]], factor[u, here])
                for u in range(a, b)
                if len(here)
            ]
            time.append(here)
            values.append(np.sum(each, axis=0).ravel() / self.unit if each else np.zeros(0))
        at, start = (np.cumsum([0, *map(len, parts)]).astype(np.int64) for parts in (time, values))
        return Held(at, np.concatenate(time).astype(np.int64), start, np.concatenate(values))

    def _factors(self) -> Array:
        """How often each usage is held at each of the times watched."""
        rows, num = self.rows, len(self.times)
        steps = np.zeros((len(rows.starts) - 1, num + 1))
        np.add.at(steps, (rows.owner, np.searchsorted(self.times, rows.lo)), rows.times)
        np.add.at(steps, (rows.owner, np.searchsorted(self.times, rows.hi)), -rows.times)
        factor: Array = np.cumsum(steps, axis=1)[:, :num]
        return factor


def _graph(problem: Problem, flat: Flat) -> Graph:
    """The edges of every node with their tables as seen from it: a row per label of the other node,
    with this node's states in it."""
    ends = np.repeat(np.arange(flat.num_nodes), np.diff(flat.at))
    mine = flat.u[flat.near] == ends
    other = np.where(mine, flat.v[flat.near], flat.u[flat.near])
    both = np.argsort(flat.near, kind="stable").reshape(-1, 2)
    back = np.empty(len(flat.near), dtype=np.int64)
    back[both[:, 0]], back[both[:, 1]] = both[:, 1], both[:, 0]
    tables = [
        problem.edges[e].cost.T if own else problem.edges[e].cost
        for e, own in zip(flat.near, mine, strict=True)
    ]
    row = np.concatenate([[0], np.cumsum([table.size for table in tables])])[:-1].astype(np.int64)
    pairs = np.concatenate([table.ravel() for table in tables]) if tables else np.zeros(0)
    dear = _DEAR * max(
        float(np.abs(table[np.isfinite(table)]).max(initial=1.0)) for table in (flat.costs, pairs)
    )
    costs, pairs = (np.where(np.isfinite(table), table, dear) for table in (flat.costs, pairs))
    return Graph(costs, flat.first, flat.at, other, back, row, pairs)
