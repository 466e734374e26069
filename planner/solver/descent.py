"""Compiled local search over one choice: single changes and changes of two neighbours, within the memory or on the way to it.

What a choice is charged is its cost plus `weight` a byte over the room at each time. A change is taken if it lowers that; with a large
weight a choice that fits never stops fitting.
"""

from __future__ import annotations

import numba
import numpy as np

from planner.solver.problem import Array
from planner.solver.working import Labels

__all__ = ["one_opt", "two_opt"]


@numba.njit(cache=True)
def _charge(
    n: int, old: int, new: int, usage_at: Labels, starts: Labels, nbytes: Array, span_at: Labels, lo: Labels, hi: Labels,
    times: Array, excess: Array, allowed: float,
) -> float:  # fmt: skip
    """How many more bytes are over the room, summed over time, where node n goes from `old` to `new`, which `excess` then shows.
    Undone, and infinite, where it comes to more than `allowed` on the way."""
    total, done = 0.0, usage_at[n]
    while done < usage_at[n + 1] and total <= allowed:
        change = nbytes[starts[done] + new] - nbytes[starts[done] + old]
        if change != 0.0:
            for s in range(span_at[done], span_at[done + 1]):
                step = change * times[s]
                for t in range(lo[s], hi[s]):
                    before = excess[t]
                    after = before + step
                    total += max(after, 0.0) - max(before, 0.0)
                    excess[t] = after
        done += 1
    if total <= allowed:
        return total
    for usage in range(usage_at[n], done):
        change = nbytes[starts[usage] + new] - nbytes[starts[usage] + old]
        if change != 0.0:
            for s in range(span_at[usage], span_at[usage + 1]):
                for t in range(lo[s], hi[s]):
                    excess[t] -= change * times[s]
    return np.inf


@numba.njit(cache=True)
def _strained(usage_at: Labels, span_at: Labels, lo: Labels, hi: Labels, excess: Array, out: Array) -> None:
    """Sets `out[n]` to the bytes over the room, summed over the times at which node n holds."""
    upto = np.zeros(len(excess) + 1)
    for t in range(len(excess)):
        upto[t + 1] = upto[t] + max(excess[t], 0.0)
    for n in range(len(usage_at) - 1):
        out[n] = 0.0
        for usage in range(usage_at[n], usage_at[n + 1]):
            for s in range(span_at[usage], span_at[usage + 1]):
                out[n] += upto[hi[s]] - upto[lo[s]]


@numba.njit(cache=True)
def _around(
    n: int, skip: int, costs: Array, first: Labels, u: Labels, v: Labels, pairs: Array, table: Labels, near: Labels, at: Labels,
    labels: Labels, out: Array,
) -> None:  # fmt: skip
    """What each strategy of node n costs, its neighbours' given; edge `skip` left out."""
    size = first[n + 1] - first[n]
    for i in range(size):
        out[i] = costs[first[n] + i]
    for k in range(at[n], at[n + 1]):
        e = near[k]
        if e == skip:
            continue
        columns = first[v[e] + 1] - first[v[e]]
        if u[e] == n:
            for i in range(size):
                out[i] += pairs[table[e] + i * columns + labels[v[e]]]
        else:
            for i in range(size):
                out[i] += pairs[table[e] + labels[u[e]] * columns + i]


@numba.njit(cache=True)
def one_opt(
    costs: Array, first: Labels, u: Labels, v: Labels, pairs: Array, table: Labels, near: Labels, at: Labels,
    usage_at: Labels, starts: Labels, nbytes: Array, span_at: Labels, lo: Labels, hi: Labels, times: Array, excess: Array,
    labels: Labels, order: Labels, weight: float,
) -> int:  # fmt: skip
    """Gives each node of `order` its best strategy; how many changed."""
    changed = 0
    around, strain = np.empty(len(costs)), np.empty(len(first) - 1)
    _strained(usage_at, span_at, lo, hi, excess, strain)
    for n in order:
        _around(n, -1, costs, first, u, v, pairs, table, near, at, labels, around)
        old = labels[n]
        best, gain = old, -1e-9 * (1.0 + abs(around[old]))
        for i in range(first[n + 1] - first[n]):
            dearer = around[i] - around[old]
            if i == old or not dearer < np.inf or dearer - weight * strain[n] >= gain:
                continue  # it is not cheaper, and relieves the memory by no more than its node's strain
            # Without strain nothing is relieved: the count only grows, and may stop early.
            allowed = (gain - dearer) / weight if strain[n] == 0.0 else np.inf
            over = _charge(n, old, i, usage_at, starts, nbytes, span_at, lo, hi, times, excess, allowed)
            if over == np.inf:
                continue
            if dearer + weight * over < gain:
                best, gain = i, dearer + weight * over
            _charge(n, i, old, usage_at, starts, nbytes, span_at, lo, hi, times, excess, np.inf)
        if best != old:
            _charge(n, old, best, usage_at, starts, nbytes, span_at, lo, hi, times, excess, np.inf)
            labels[n] = best
            changed += 1
    return changed


@numba.njit(cache=True)
def two_opt(
    costs: Array, first: Labels, u: Labels, v: Labels, pairs: Array, table: Labels, near: Labels, at: Labels,
    usage_at: Labels, starts: Labels, nbytes: Array, span_at: Labels, lo: Labels, hi: Labels, times: Array, excess: Array,
    labels: Labels, order: Labels, weight: float,
) -> int:  # fmt: skip
    """Gives the two nodes of each edge of `order` their best pair of strategies; how many edges changed."""
    changed = 0
    one, two, strain = np.empty(len(costs)), np.empty(len(costs)), np.empty(len(first) - 1)
    _strained(usage_at, span_at, lo, hi, excess, strain)
    for e in order:
        a, b = u[e], v[e]
        _around(a, e, costs, first, u, v, pairs, table, near, at, labels, one)
        _around(b, e, costs, first, u, v, pairs, table, near, at, labels, two)
        columns = first[b + 1] - first[b]
        now = one[labels[a]] + two[labels[b]] + pairs[table[e] + labels[a] * columns + labels[b]]
        calm, taken = strain[a] == 0.0 and strain[b] == 0.0, False
        for i in range(first[a + 1] - first[a]):
            for j in range(columns):
                dearer = one[i] + two[j] + pairs[table[e] + i * columns + j] - now
                if not dearer < -1e-9 * (1.0 + abs(now)):
                    continue
                x, y = labels[a], labels[b]
                over = _charge(a, x, i, usage_at, starts, nbytes, span_at, lo, hi, times, excess, np.inf)
                allowed = -dearer / weight - over if calm else np.inf
                more = _charge(b, y, j, usage_at, starts, nbytes, span_at, lo, hi, times, excess, allowed)
                if more < np.inf and dearer + weight * (over + more) < 0.0:
                    labels[a], labels[b] = i, j
                    now, taken = now + dearer, True
                    continue
                if more < np.inf:
                    _charge(b, j, y, usage_at, starts, nbytes, span_at, lo, hi, times, excess, np.inf)
                _charge(a, i, x, usage_at, starts, nbytes, span_at, lo, hi, times, excess, np.inf)
        changed += taken
    return changed
