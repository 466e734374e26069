"""Compiled kernels over `Flat` arrays: message passing, decoding, local search. Imported only for
problems that need them.

Sequential reweighted message passing (Kolmogorov, "A New Look at Reweighted Message Passing", PAMI
2015; for pairs it is TRW-S): the cost of edge e is  C[i,j] - to_u[i] - to_v[j],  that of node n its
own plus all its messages. A pass collects at each node the least cost of its edges, then hands
equal shares to the edges ahead. Afterwards every edge costs at least 0, so the nodes' minima add up
to a lower bound, which never falls.
"""

from __future__ import annotations

import numba
import numpy as np

from planner.solver.problem.problem import Array
from planner.solver.reduce.working import Labels

__all__ = ["least_pairs", "sweep"]


@numba.njit(cache=True, nogil=True)
def sweep(
    costs: Array,
    first: Labels,
    u: Labels,
    v: Labels,
    pairs: Array,
    table: Labels,
    near: Labels,
    at: Labels,
    to_u: Labels,
    to_v: Labels,
    messages: Array,
    forward: bool,
    marginals: Array,
    labels: Labels,
) -> float:
    """One pass over all nodes, `forward` or backward; returns the bound after it. Writes to
    `marginals` how much more each state costs than its node's cheapest, all else at its best; to
    `labels` a choice read off on the way."""
    bound = 0.0
    num = len(first) - 1
    theta, given = np.empty(len(costs)), np.empty(len(costs))
    for step in range(num):
        n = step if forward else num - 1 - step
        size = first[n + 1] - first[n]
        for i in range(size):
            theta[i] = costs[first[n] + i]
            given[i] = 0.0
        ahead, behind = 0, 0
        for k in range(at[n], at[n + 1]):
            e = near[k]
            mine, other = (to_u[e], v[e]) if u[e] == n else (to_v[e], u[e])
            if (other > n) == forward:
                ahead += 1
            else:
                behind += 1
                _collect(e, n, u, v, first, pairs, table, to_u, to_v, messages)
                _decide(e, n, u, v, first, pairs, table, mine, messages, labels, given)
            for i in range(size):
                theta[i] += messages[mine + i]
        least, best, label = np.inf, np.inf, 0
        for i in range(size):
            least = min(least, theta[i])
        for i in range(size):
            marginals[first[n] + i] = theta[i] - least
            if theta[i] + given[i] < best:
                best, label = theta[i] + given[i], i
        labels[n] = label
        share = 1.0 / max(ahead, behind) if ahead else 0.0
        bound += least * (1.0 - share * ahead)
        for k in range(at[n], at[n + 1]):
            e = near[k]
            mine, other = (to_u[e], v[e]) if u[e] == n else (to_v[e], u[e])
            if (other > n) == forward:
                for i in range(size):
                    messages[mine + i] -= share * theta[i]
    return bound


@numba.njit(cache=True, nogil=True)
def _collect(
    e: int,
    n: int,
    u: Labels,
    v: Labels,
    first: Labels,
    pairs: Array,
    table: Labels,
    to_u: Labels,
    to_v: Labels,
    messages: Array,
) -> None:
    """Moves the least cost of edge e, for each state of node n, to node n."""
    rows, columns = first[u[e] + 1] - first[u[e]], first[v[e] + 1] - first[v[e]]
    start, a, b = table[e], to_u[e], to_v[e]
    if u[e] == n:
        for i in range(rows):
            least = np.inf
            for j in range(columns):
                least = min(least, pairs[start + i * columns + j] - messages[b + j])
            messages[a + i] = least
    else:
        for j in range(columns):
            messages[b + j] = np.inf
        for i in range(rows):
            taken = messages[a + i]
            for j in range(columns):
                messages[b + j] = min(messages[b + j], pairs[start + i * columns + j] - taken)


@numba.njit(cache=True, nogil=True)
def _decide(
    e: int,
    n: int,
    u: Labels,
    v: Labels,
    first: Labels,
    pairs: Array,
    table: Labels,
    mine: int,
    messages: Array,
    labels: Labels,
    given: Array,
) -> None:
    """Adds to `given` the cost of node n's states at edge e, given the other node's strategy."""
    columns = first[v[e] + 1] - first[v[e]]
    for i in range(first[n + 1] - first[n]):
        if u[e] == n:
            pair = (
                pairs[table[e] + i * columns + labels[v[e]]]
                - messages[b_of(e, first, u, mine) + labels[v[e]]]
            )
        else:
            pair = (
                pairs[table[e] + labels[u[e]] * columns + i]
                - messages[a_of(e, first, u, mine) + labels[u[e]]]
            )
        given[i] += pair - messages[mine + i]


@numba.njit(cache=True, inline="always")
def a_of(e: int, first: Labels, u: Labels, mine: int) -> int:
    """Where the message to an edge's first node starts, given the start `mine` of that to its
    second."""
    return int(mine - (first[u[e] + 1] - first[u[e]]))


@numba.njit(cache=True, inline="always")
def b_of(e: int, first: Labels, u: Labels, mine: int) -> int:
    """Where the message to an edge's second node starts, given the start `mine` of that to its
    first."""
    return int(mine + (first[u[e] + 1] - first[u[e]]))


@numba.njit(cache=True, nogil=True)
def least_pairs(
    u: Labels,
    v: Labels,
    first: Labels,
    pairs: Array,
    table: Labels,
    to_u: Labels,
    to_v: Labels,
    messages: Array,
) -> float:
    """The sum, over all edges, of the least cost of a pair less its messages."""
    total = 0.0
    for e in range(len(u)):
        rows, columns = first[u[e] + 1] - first[u[e]], first[v[e] + 1] - first[v[e]]
        least = np.inf
        for i in range(rows):
            for j in range(columns):
                least = min(
                    least,
                    pairs[table[e] + i * columns + j]
                    - messages[to_u[e] + i]
                    - messages[to_v[e] + j],
                )
        total += least
    return total
