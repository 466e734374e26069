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


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _charge(
    n: int, old: int, new: int, usage_at: Labels, starts: Labels, nbytes: Array, span_at: Labels, lo: Labels, hi: Labels,
    times: Array, excess: Array, apply: bool, allowed: float,
) -> float:  # fmt: skip
    """How many more bytes are over the room, summed over time, where node n goes from `old` to `new`; stops counting where more than
    `allowed`. The excess is as after the change if `apply`, else as before."""
    total = 0.0
    done = usage_at[n]
    while done < usage_at[n + 1] and total <= allowed:
        change = nbytes[starts[done] + new] - nbytes[starts[done] + old]
        if change != 0.0:
            for s in range(span_at[done], span_at[done + 1]):
                step = change * times[s]
                for t in range(lo[s], hi[s]):
                    before = excess[t]
                    after = before + step
                    if after > 0.0 or before > 0.0:
                        total += max(after, 0.0) - max(before, 0.0)
                    excess[t] = after
        done += 1
    if not apply:
        for usage in range(usage_at[n], done):
            change = nbytes[starts[usage] + new] - nbytes[starts[usage] + old]
            if change != 0.0:
                for s in range(span_at[usage], span_at[usage + 1]):
                    step = change * times[s]
                    for t in range(lo[s], hi[s]):
                        excess[t] -= step
    return total


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
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


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def one_opt(
    costs: Array, first: Labels, u: Labels, v: Labels, pairs: Array, table: Labels, near: Labels, at: Labels,
    usage_at: Labels, starts: Labels, nbytes: Array, span_at: Labels, lo: Labels, hi: Labels, times: Array, excess: Array,
    labels: Labels, order: Labels, weight: float,
) -> int:  # fmt: skip
    """Gives each node of `order` its best strategy; how many changed."""
    changed = 0
    around = np.empty(2 * len(costs))
    for n in order:
        _around(n, -1, costs, first, u, v, pairs, table, near, at, labels, around)
        old = labels[n]
        best, gain = old, -1e-9 * (1.0 + abs(around[old]))
        for i in range(first[n + 1] - first[n]):
            dearer = around[i] - around[old]
            if i == old or not dearer < np.inf or (weight == 0.0 and dearer >= gain):
                continue
            allowed = (gain - dearer) / weight if weight > 0.0 else np.inf
            over = _charge(n, old, i, usage_at, starts, nbytes, span_at, lo, hi, times, excess, False, np.inf)
            if over < allowed:
                best, gain = i, dearer + weight * over
        if best != old:
            _charge(n, old, best, usage_at, starts, nbytes, span_at, lo, hi, times, excess, True, np.inf)
            labels[n] = best
            changed += 1
    return changed


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def two_opt(
    costs: Array, first: Labels, u: Labels, v: Labels, pairs: Array, table: Labels, near: Labels, at: Labels,
    usage_at: Labels, starts: Labels, nbytes: Array, span_at: Labels, lo: Labels, hi: Labels, times: Array, excess: Array,
    labels: Labels, order: Labels, weight: float,
) -> int:  # fmt: skip
    """Gives the two nodes of each edge of `order` their best pair of strategies; how many edges changed."""
    changed = 0
    one, two = np.empty(2 * len(costs)), np.empty(2 * len(costs))
    for e in order:
        a, b = u[e], v[e]
        _around(a, e, costs, first, u, v, pairs, table, near, at, labels, one)
        _around(b, e, costs, first, u, v, pairs, table, near, at, labels, two)
        columns = first[b + 1] - first[b]
        taken = False
        now = one[labels[a]] + two[labels[b]] + pairs[table[e] + labels[a] * columns + labels[b]]
        for i in range(first[a + 1] - first[a]):
            for j in range(columns):
                dearer = one[i] + two[j] + pairs[table[e] + i * columns + j] - now
                if not dearer < -1e-9 * (1.0 + abs(now)):
                    continue
                over = _charge(a, labels[a], i, usage_at, starts, nbytes, span_at, lo, hi, times, excess, True, np.inf)
                over += _charge(b, labels[b], j, usage_at, starts, nbytes, span_at, lo, hi, times, excess, True, np.inf)
                if dearer + weight * over < 0.0:
                    labels[a], labels[b] = i, j
                    now += dearer
                    taken = True
                else:
                    _charge(b, j, labels[b], usage_at, starts, nbytes, span_at, lo, hi, times, excess, True, np.inf)
                    _charge(a, i, labels[a], usage_at, starts, nbytes, span_at, lo, hi, times, excess, True, np.inf)
        changed += taken
    return changed
