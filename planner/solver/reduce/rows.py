"""Memory as rows over the states of all nodes: row t is  sum over states s of m_t(s) x(s) <=
room(t).

A state is a strategy of a node; states are numbered node by node. Rows are made one at a time, on
demand.
"""

from __future__ import annotations

import numpy as np

from planner.solver.problem.problem import Array, Choice, Problem
from planner.solver.reduce.working import Labels

__all__ = ["Rows"]


class Rows:
    """The memory rows of a problem, none if it has no limit. `first[n]` is node n's first state;
    `room[t]` the bytes left for choices at time t."""

    def __init__(self, problem: Problem) -> None:
        sizes = np.array([len(c) for c in problem.costs], dtype=np.int64)
        self.first: Labels = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        usages = problem.usages if problem.limit < float("inf") else ()
        widths = np.array([u.nbytes.size for u in usages], dtype=np.int64)
        self.starts: Labels = np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)
        self.nbytes: Array = (
            np.concatenate([u.nbytes.astype(float) for u in usages]) if usages else np.zeros(0)
        )
        nodes = np.array([u.node for u in usages], dtype=np.int64)
        self.node = nodes
        self.states: Labels = np.repeat(self.first[nodes] - self.starts[:-1], widths) + np.arange(
            len(self.nbytes)
        )
        spans = [(index, *span) for index, usage in enumerate(usages) for span in usage.spans]
        table = np.array(spans, dtype=float).reshape(-1, 4)
        self.owner, self.lo, self.hi = (table[:, i].astype(np.int64) for i in range(3))
        self.times: Array = table[:, 3]
        self.horizon = problem.horizon if problem.limit < float("inf") else 0
        self.limit = problem.limit
        base = np.zeros(self.horizon) if problem.base is None else problem.base[: self.horizon]
        self.room: Array = problem.limit - base
        #: Bytes over the room that still count as within: half of what `Problem.fits` allows, to
        #: allow for rounding here.
        self.slack = 0.5e-9 * problem.limit if self.times.size else 0.0

    def row(self, at: int) -> tuple[Labels, Array]:
        """The states that hold memory at time `at`, and their bytes."""
        live = (self.lo <= at) & (at < self.hi)
        factor = np.zeros(len(self.starts) - 1)
        np.add.at(factor, self.owner[live], self.times[live])
        dense = np.zeros(int(self.first[-1]))
        wanted = np.repeat(factor, np.diff(self.starts))
        np.add.at(dense, self.states, wanted * self.nbytes)
        found = np.flatnonzero(dense)
        return found, dense[found]

    def held(self, weight: Array) -> Array:
        """Bytes held at each time if state s is taken with weight `weight[s]`, without what is
        always held."""
        if not len(self.nbytes):
            return np.zeros(self.horizon)
        return self._over_time(np.add.reduceat(self.nbytes * weight[self.states], self.starts[:-1]))

    def held_by(self, labels: Labels) -> Array:
        """The same for one strategy per node."""
        return self._over_time(self.nbytes[self.starts[:-1] + labels[self.node]])

    def _over_time(self, nbytes: Array) -> Array:
        amount = nbytes[self.owner] * self.times
        steps = np.bincount(self.lo, amount, self.horizon + 1) - np.bincount(
            self.hi, amount, self.horizon + 1
        )
        return np.cumsum(steps)[: self.horizon]

    def excess(self, labels: Labels | Choice) -> Array:
        """Bytes over the room at each time; positive at times at which the choice does not fit."""
        found: Array = self.held_by(np.asarray(labels, dtype=np.int64)) - self.room
        return found

    def fits(self, labels: Labels | Choice) -> bool:
        """Whether one strategy per node stays within the room."""
        return bool((self.excess(labels) <= self.slack).all())

    def over(self, held: Array, tolerance: float = 0.0) -> Labels:
        """The few times to add rows for first if `held` is over the room: the worst of each stretch
        that is over, worst first."""
        excess = held - self.room - max(self.slack, tolerance * self.limit)
        over = np.flatnonzero(excess > 0)
        if not len(over):
            return over
        groups = np.split(over, np.flatnonzero(np.diff(over) > 1) + 1)
        worst = np.array([group[excess[group].argmax()] for group in groups])
        return worst[np.argsort(-excess[worst])]

    def charged(self, prices: Array) -> Array:
        """The cost of each state's memory, at `prices[t]` per byte at time t."""
        if not len(self.nbytes):
            return np.zeros(int(self.first[-1]))
        paid = np.concatenate([[0.0], np.cumsum(prices)])
        each = np.bincount(
            self.owner, (paid[self.hi] - paid[self.lo]) * self.times, len(self.starts) - 1
        )
        held = np.repeat(each, np.diff(self.starts)) * self.nbytes
        return np.bincount(self.states, held, int(self.first[-1])).astype(np.float64)
