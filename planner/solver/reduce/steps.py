"""The lossless reductions, each a step on a node of a `Working` problem.

    forbid     remove a strategy that costs infinity
    arcs       remove a strategy that has no allowed partner at some neighbour (arc consistency)
    room       remove a strategy that holds more than is left when all others hold their least
    fold       move a node of one strategy into its neighbours' costs and the memory always held
    merge      if u's choice forces v's: move v into u, memory too
    push       if C[i,j] = a_i + b_j: move the edge into its nodes' costs
    dominate   remove strategy i if some j costs no more whatever the neighbours choose, and holds
               no more in any part of memory
    leaf       a node that holds nothing and has one neighbour: for each of the neighbour's
               strategies, add the node's least cost to it
    chain      the same with two neighbours: add it to the table between them

`times` (in `timepoints`) keeps only the times at which memory can be over the limit. No step
changes the least cost.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planner.solver.problem.problem import Array
from planner.solver.reduce.working import Contradiction, Labels, Working

__all__ = ["NODE_STEPS", "room"]

#: A merge or a chain may make at most `_GROWTH` times the pairs that it removes plus `_SPARE`:
#: else tables would fill memory.
_GROWTH, _SPARE = 1.5, 2_000

#: Below any sum of costs, yet finite: infinity plus this is still infinity.
_LOW = -1e300

#: Cells of a block of a dominance test: 2 MB, within a core's cache.
_BLOCK = 250_000


def forbid(work: Working, node: int) -> None:
    """Removes strategies that cost infinity."""
    possible = np.isfinite(work.costs[node])
    if not possible.all():
        work.keep(node, np.flatnonzero(possible))


def arcs(work: Working, node: int) -> None:
    """Removes strategies without an allowed partner at some neighbour."""
    possible = np.ones(len(work.costs[node]), dtype=bool)
    for table in work.near[node].values():
        possible &= np.isfinite(table).any(axis=1)
    if not possible.all():
        work.keep(node, np.flatnonzero(possible))


def fold(work: Working, node: int) -> None:
    """Removes a node of one strategy."""
    if len(work.costs[node]) == 1 and np.isfinite(work.costs[node][0]):
        work.fold(node)


def merge(work: Working, node: int) -> None:
    """Merges neighbours whose strategy this node's forces into it, and it into a neighbour that
    forces its own. If either could go, the one with fewer edges does."""
    for other in list(work.near[node]):
        possible = np.isfinite(work.near[node][other])
        ways = [(other, node, possible), (node, other, possible.T)]
        for gone, into, pairs in sorted(ways, key=lambda way: len(work.near[way[0]])):
            if (pairs.sum(axis=1) == 1).all() and _grows_little(work, gone, into):
                work.merge(gone, into, pairs.argmax(axis=1))
                break
        if not work.alive[node]:
            return


def _grows_little(work: Working, gone: int, into: int) -> bool:
    """Whether moving `gone`'s edges to `into` keeps the number of pairs in bounds."""
    few, many = len(work.costs[gone]), len(work.costs[into])
    if many <= few:
        return True
    others = [len(work.costs[n]) for n in work.near[gone] if n != into and n not in work.near[into]]
    return many * sum(others) <= _GROWTH * few * (sum(others) + many) + _SPARE


def push(work: Working, node: int) -> None:
    """Moves edges whose cost is a sum of one part per node into the nodes."""
    for other, table in list(work.near[node].items()):
        corner = table[0, 0]
        if table[-1, -1] + corner != table[0, -1] + table[-1, 0] or not np.isfinite(corner):
            continue  # a quick test of the corners rules out most tables
        rows, columns = table[:, 0], table[0] - corner
        if np.isfinite(table).all() and (table == rows[:, None] + columns[None, :]).all():
            work.touched.update((node, other))
            work.costs[node] = work.costs[node] + rows
            work.costs[other] = work.costs[other] + columns
            work.drop_edge(node, other)


def dominate(work: Working, node: int) -> None:
    """Removes strategies that are no better than another, whatever the neighbours choose."""
    size = len(work.costs[node])
    if size == 1 or not np.isfinite(work.costs[node]).all():
        return  # forbidden strategies are removed by another step
    # [i, j]: how much more j costs than i, at worst.
    worse = work.costs[node][None, :] - work.costs[node][:, None]
    leaner = np.ones((size, size), dtype=bool)
    for nbytes in work.parts[node].values():
        leaner &= nbytes[None, :] <= nbytes[:, None]
    np.fill_diagonal(leaner, False)
    for table in sorted(work.near[node].values(), key=np.size):
        rows = np.flatnonzero(leaner.any(axis=1))
        if not len(rows):
            return
        worse[rows] += _worst(table, rows)
        # No later table can make up for an infinite difference, but it can for a finite one.
        leaner &= worse < np.inf
    beats = leaner & (worse <= 0)
    # Of two equal strategies the first stays.
    beats &= ~(beats.T & (np.arange(size)[None, :] > np.arange(size)[:, None]))
    gone = beats.any(axis=1)
    if gone.any():
        work.keep(node, np.flatnonzero(~gone))


def _worst(table: Array, rows: Labels) -> Array:
    """max_x C[j,x] - C[i,x] for each i of `rows` and every j; +inf where i allows an x that j
    does not, much below 0 where i allows none."""
    size, width = table.shape
    allowed = np.isfinite(table)
    filled = np.where(allowed, table, 0.0)
    out = np.empty((len(rows), size))
    step = max(1, _BLOCK // (size * width))
    mixed = not allowed.all()
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        more = filled[None, :, :] - filled[block][:, None, :]
        if mixed:
            more[np.broadcast_to(~allowed[None, :, :], more.shape)] = np.inf
            more = np.where(allowed[block][:, None, :], more, _LOW)
        out[start : start + step] = more.max(axis=2)
    return out


def leaf(work: Working, node: int) -> None:
    """Removes a node that holds nothing and has at most one neighbour."""
    if work.parts[node] or len(work.near[node]) > 1:
        return
    if not work.near[node]:
        if np.isfinite(work.costs[node]).any():
            work.keep(node, np.array([work.costs[node].argmin()]))
            work.fold(node)
        return
    ((other, table),) = work.near[node].items()
    total = work.costs[node][:, None] + table
    work.costs[other] = work.costs[other] + total.min(axis=0)
    work.eliminate(node, (other,), total.argmin(axis=0))


def chain(work: Working, node: int) -> None:
    """Removes a node that holds nothing and has two neighbours, if the table between them stays
    small."""
    if work.parts[node] or len(work.near[node]) != 2:
        return
    (a, to_a), (b, to_b) = work.near[node].items()
    size, first, second = len(work.costs[node]), len(work.costs[a]), len(work.costs[b])
    if b not in work.near[a] and first * second > _GROWTH * size * (first + second) + _SPARE:
        return
    best = np.full((first, second), np.inf)
    label = np.zeros((first, second), dtype=np.int64)
    for index in range(size):
        total = work.costs[node][index] + to_a[index][:, None] + to_b[index][None, :]
        better = total < best
        best[better], label[better] = total[better], index
    work.eliminate(node, (a, b), label)
    work.add_table(a, b, best)


def room(work: Working) -> None:
    """Removes strategies that hold more than is left when every other node holds its least."""
    if not work.limited:
        return
    if len(work.room) and work.room.min() < -_slack(work):
        raise Contradiction
    for node in work.nodes():
        fits = np.ones(len(work.costs[node]), dtype=bool)
        for spans, nbytes in work.parts[node].items():
            most = min(float(work.room[start:end].min()) / times for start, end, times in spans)
            fits &= nbytes <= most + _slack(work)
        if not fits.all():
            work.keep(node, np.flatnonzero(fits))


def _slack(work: Working) -> float:
    """Bytes over the limit that count as within, as in `Problem.fits`."""
    return 1e-9 * work.whole.limit


#: The steps that look at one node at a time, cheapest first.
NODE_STEPS: dict[str, Callable[[Working, int], None]] = {
    "forbid": forbid,
    "arcs": arcs,
    "fold": fold,
    "push": push,
    "merge": merge,
    "leaf": leaf,
    "chain": chain,
    "dominate": dominate,
}
