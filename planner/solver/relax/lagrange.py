"""The dual: prices on memory with message passing, a lower bound that needs no integer program.

With prices p_t >= 0, every choice that fits costs at least  min_x [cost(x) + sum_t p_t held_t(x)] -
sum_t p_t room_t; message passing bounds the minimum. Prices follow the excess of a *softened*
choice, strategies weighted by exp(-marginal / temperature): the hard choice jumps between extremes
and lets the bound rise tens of times more slowly (measured, docs/decisions/0010).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from planner.solver.problem.problem import Array
from planner.solver.reduce.rows import Rows
from planner.solver.reduce.working import Labels
from planner.solver.relax.flat import Flat
from planner.solver.relax.message_passing import least_pairs, sweep

__all__ = ["Dual"]

#: The share of the bound by which the first step may raise it; after `_PATIENCE` rounds without a
#: rise the step is multiplied by `_DECAY`; below `_REST` the bound has converged.
_STEP, _PATIENCE, _DECAY, _REST = 0.02, 10, 0.7, 2e-5

#: The share by which a round must raise the bound to count; the part of the last direction that is
#: kept.
_RISE, _MOMENTUM = 1e-4, 0.8

#: The temperature, in units of a node's mean cost.
_TEMPERATURE = 0.1

#: The sums of all prices tried at first, as multiples of the bound without a limit; sweeps at each;
#: how strongly excess memory draws prices to its time.
_FACTORS, _STEADY, _BIAS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 1e4, 1e5, 1e6), 10, 8.0

#: Times that may get a price in a round; sweeps without and with prices changing.
_NEW, _WARM, _SWEEPS = 20, 40, 2


class Dual:
    """Prices and messages of a problem, and the best bound that they gave. `prices` are in cost per
    share of the limit; `dot` is the dot product over times."""

    def __init__(
        self,
        flat: Flat,
        rows: Rows,
        prices: Array | None = None,
        dot: Callable[[Array, Array], Any] = np.dot,
    ) -> None:
        self.flat, self.rows, self.dot = flat, rows, dot
        self.unit = rows.limit if 0 < rows.limit < float("inf") else 1.0
        self.room: Array = rows.room / self.unit
        self.prices: Array = np.zeros(rows.horizon) if prices is None else prices
        self.to_u, self.to_v, length = flat.messages
        self.messages, self.marginals = np.zeros(length), np.zeros(len(flat.costs))
        self.labels: Labels = np.zeros(flat.num_nodes, dtype=np.int64)
        self.bound, self.best = -float("inf"), (self.prices.copy(), self.messages.copy())

    def priced(self, prices: Array) -> Array:
        """The states' costs with memory priced."""
        return self.flat.costs + self.rows.charged(prices) / self.unit

    def sweep(self, costs: Array, forward: bool) -> float:
        """One pass; returns its bound, without the prices' constant."""
        f = self.flat
        return float(
            sweep(
                costs,
                f.first,
                f.u,
                f.v,
                f.pairs,
                f.table,
                f.near,
                f.at,
                self.to_u,
                self.to_v,
                self.messages,
                forward,
                self.marginals,
                self.labels,
            )
        )

    def begin(self, fits: Callable[[Labels], bool]) -> bool:
        """Raises all prices together, more at times at which the choice read off has more excess,
        until `fits` accepts one; returns whether it did. `rise` goes on from the prices with the
        best bound."""
        free = abs(self.sweep(self.priced(np.zeros(self.rows.horizon)), True)) or 1.0
        share, found = np.full(self.rows.horizon, 1.0 / max(self.rows.horizon, 1)), False
        for factor in _FACTORS:
            prices = factor * free * share
            costs = self.priced(prices)
            for index in range(_STEADY):
                bound = self.sweep(costs, index % 2 == 0) - float(self.dot(prices, self.room))
            if bound > self.bound:
                self.bound, self.prices, self.best = bound, prices, (prices, self.messages.copy())
            found = fits(self.labels)
            if found:
                break
            share = share * np.exp(
                _BIAS * np.clip(self.rows.excess(self.labels) / self.unit, -1.0, 1.0)
            )
            share /= share.sum() or 1.0
        self.messages[:] = self.best[1]
        return found

    def rise(self, deadline: float, stopped: Callable[[], bool], tell: Callable[[], None]) -> None:
        """Raises the bound until the deadline or until it has converged; calls `tell` after every
        round."""
        prices, direction, step, stalled = self.prices.copy(), np.zeros(self.rows.horizon), _STEP, 0
        for index in range(_WARM):
            self.sweep(self.priced(prices), index % 2 == 0)
        while step > _REST and time.perf_counter() < deadline and not stopped():
            costs = self.priced(prices)
            for index in range(_SWEEPS):
                found = self.sweep(costs, index % 2 == 0)
            found -= float(self.dot(prices, self.room))
            stalled = (
                0
                if found > self.bound + _RISE * abs(self.bound) or self.bound == -float("inf")
                else stalled + 1
            )
            if found > self.bound:
                self.bound, self.prices = found, prices
                self.best = (prices, self.messages.copy())
            tell()
            prices, direction = self._next(prices, direction, step)
            if stalled >= _PATIENCE:
                step *= _DECAY
                stalled = 0
                prices = self.prices
                direction = np.zeros_like(direction)

    def _next(self, prices: Array, direction: Array, step: float) -> tuple[Array, Array]:
        """Prices after a step along the excess of the softened choice, at times at which the price
        or the excess is positive."""
        held = self.rows.held(self._softened())
        excess = held / self.unit - self.room
        active = prices > 0
        active[self.rows.over(held)[:_NEW]] = True
        direction = np.where(active, _MOMENTUM * direction + (1 - _MOMENTUM) * excess, 0.0)
        length = (
            step * max(abs(self.bound), 1e-30) / max(float(self.dot(direction, direction)), 0.01)
        )
        return np.maximum(0.0, prices + length * direction), direction

    def _softened(self) -> Array:
        """Each state's weight: the nearer its cost is to its node's best, the more."""
        temperature = max(_TEMPERATURE * abs(self.bound) / max(self.flat.num_nodes, 1), 1e-30)
        weight = np.exp(-self.marginals / temperature)
        total: Array = np.add.reduceat(weight, self.flat.first[:-1])
        return weight / total[self.flat.node_of]

    def settle(self, sweeps: int = 10) -> None:
        """Goes back to the best prices and messages, and makes marginals and labels theirs."""
        self.prices, messages = self.best
        self.messages[:] = messages
        costs = self.priced(self.prices)
        for index in range(sweeps):
            self.sweep(costs, index % 2 == 0)

    def certified(self) -> float:
        """The bound of the present messages and the best prices, added up from the tables, less the
        largest possible rounding error."""
        f, costs = self.flat, self.priced(self.prices)
        sizes = np.diff(f.first)
        owner = np.repeat(
            np.arange(2 * len(f.u)), np.stack([sizes[f.u], sizes[f.v]], axis=1).ravel()
        )
        ends = np.stack([f.u, f.v], axis=1).ravel()
        where = (
            f.first[ends][owner]
            + np.arange(len(owner))
            - np.stack([self.to_u, self.to_v], axis=1).ravel()[owner]
        )
        nodes = costs + np.bincount(where, self.messages, len(costs))
        total = float(np.minimum.reduceat(nodes, f.first[:-1]).sum()) if len(nodes) else 0.0
        size = float(np.abs(self.messages).sum() + np.abs(costs[np.isfinite(costs)]).sum())
        total += float(
            least_pairs(f.u, f.v, f.first, f.pairs, f.table, self.to_u, self.to_v, self.messages)
        )
        return total - float(self.dot(self.prices, self.room)) - 1e-14 * size

    def fixed(self, upper: float) -> Labels:
        """The states that a choice of cost at most `upper` may take: those whose marginal plus the
        bound does not exceed it, in passes of both directions. Call after `settle`."""
        costs, possible = self.priced(self.prices), np.ones(len(self.flat.costs), dtype=bool)
        for forward in (True, False):
            before = self.certified()
            self.sweep(costs, forward)
            possible &= before + self.marginals <= upper + 1e-9 * abs(upper)
        found: Labels = np.flatnonzero(possible)
        return found

    def kept(self, upper: float) -> list[Labels]:
        """The same, as the strategies of each node."""
        states, first = self.fixed(upper), self.flat.first
        parts = np.split(states, np.searchsorted(states, first[1:-1]))
        return [part - start for part, start in zip(parts, first, strict=False)]
