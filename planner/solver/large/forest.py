"""Compiled annealing by trees: all nodes of a random tree of the graph are redrawn at once, with
everything around it fixed.

An induced tree (no edges among its nodes but its own) has an exact best choice by dynamic
programming, up to the root and back. With Gumbel noise of scale T on every strategy, that choice is
a draw from about exp(-cost / T) (perturb and maximise: Papandreou and Yuille, ICCV 2011). Memory
enters the draw through prices at some times. A draw is accepted as in Metropolis, by its true cost
plus `weight` per share of the limit over the room, so prices guide the draws but decide nothing.

Changing single nodes fails if neighbours must change together (docs/decisions/0012).
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from planner.solver.problem.problem import Array
from planner.solver.reduce.working import Labels

__all__ = ["Graph", "Held", "anneal"]


class Graph(NamedTuple):
    """Node n's states begin at `first[n]`, its edges at `at[n]`. Edge k leads to `other[k]`,
    where it is number `back[k]`; its costs for this node's states begin at `row[k] + label of
    the other * states of this`."""

    costs: Array
    first: Labels
    at: Labels
    other: Labels
    back: Labels
    row: Labels
    pairs: Array


class Held(NamedTuple):
    """Memory at the times watched, as shares of the limit: node n holds memory at times
    `time[at[n] : at[n + 1]]`, and its values for state i begin at `start[n] + i * number of those
    times`."""

    at: Labels
    time: Labels
    start: Labels
    values: Array


class _Tree(NamedTuple):
    """Buffers for a tree: its `nodes`, root first; `up[x]` the edge from node x to its parent;
    `place[n]` n's place in the tree, -1 outside; `touching[n]` the number of edges from n into
    it; `new` the labels drawn."""

    nodes: Labels
    up: Labels
    place: Labels
    touching: Labels
    front: Labels
    theta: Array
    new: Labels


@numba.njit(cache=True, nogil=True)
def _grow(graph: Graph, tree: _Tree, target: int) -> int:
    """Grows a random induced tree of up to `target` nodes; returns its size."""
    node, size, waiting = np.random.randint(len(graph.first) - 1), 0, 0
    while True:
        tree.place[node] = size
        tree.nodes[size] = node
        size += 1
        for k in range(graph.at[node], graph.at[node + 1]):
            tree.touching[graph.other[k]] += 1
            if tree.place[graph.other[k]] < 0:
                tree.front[waiting] = graph.back[k]
                waiting += 1
        found = False
        while waiting > 0 and size < target and not found:
            drawn = np.random.randint(waiting)
            up = tree.front[drawn]
            waiting -= 1
            tree.front[drawn] = tree.front[waiting]
            node = graph.other[graph.back[up]]
            found = tree.place[node] < 0 and tree.touching[node] == 1
            tree.up[node] = up
        if not found:
            return size


@numba.njit(cache=True, nogil=True)
def _weigh(
    graph: Graph, tree: _Tree, size: int, labels: Labels, priced: Array, noise: Array, heat: float
) -> None:
    """Writes the cost of each state of the tree's nodes, without the tree's own edges, with memory
    priced and noise added."""
    for x in range(size):
        n = tree.nodes[x]
        a, wide = graph.first[n], graph.first[n + 1] - graph.first[n]
        drawn = np.random.randint(len(noise) - wide)
        for i in range(wide):
            tree.theta[a + i] = priced[a + i] + heat * noise[drawn + i]
        for k in range(graph.at[n], graph.at[n + 1]):
            if tree.place[graph.other[k]] < 0:
                row = graph.row[k] + labels[graph.other[k]] * wide
                for i in range(wide):
                    tree.theta[a + i] += graph.pairs[row + i]


@numba.njit(cache=True, nogil=True)
def _strain(
    graph: Graph, held: Held, tree: _Tree, size: int, excess: Array, prices: Array, weight: float
) -> None:
    """Raises the price to at least `weight` at the times that are over the room."""
    for x in range(size):
        n = tree.nodes[x]
        a, many = graph.first[n], held.at[n + 1] - held.at[n]
        for k in range(many):
            t = held.time[held.at[n] + k]
            if excess[t] > 0.0 and weight > prices[t]:
                for i in range(graph.first[n + 1] - a):
                    tree.theta[a + i] += (weight - prices[t]) * held.values[
                        held.start[n] + i * many + k
                    ]


@numba.njit(cache=True, nogil=True)
def _draw(graph: Graph, tree: _Tree, size: int) -> None:
    """Writes the cheapest labels of the tree under `theta`: minima up to the root, then choices
    down from it."""
    for x in range(size - 1, 0, -1):
        n = tree.nodes[x]
        k = tree.up[n]
        a, wide = graph.first[n], graph.first[n + 1] - graph.first[n]
        b = graph.first[graph.other[k]]
        for j in range(graph.first[graph.other[k] + 1] - b):
            row, least = graph.row[k] + j * wide, np.inf
            for i in range(wide):
                least = min(least, tree.theta[a + i] + graph.pairs[row + i])
            tree.theta[b + j] += least
    for x in range(size):
        n = tree.nodes[x]
        k = tree.up[n]
        a, wide = graph.first[n], graph.first[n + 1] - graph.first[n]
        least, best = np.inf, 0
        for i in range(wide):
            value = tree.theta[a + i]
            if x > 0:
                value += graph.pairs[graph.row[k] + tree.new[graph.other[k]] * wide + i]
            if value < least:
                least, best = value, i
        tree.new[n] = best


@numba.njit(cache=True, nogil=True)
def _dearer(graph: Graph, tree: _Tree, size: int, labels: Labels) -> float:
    """The cost of the tree's new labels less that of its old ones."""
    total = 0.0
    for x in range(size):
        n = tree.nodes[x]
        a, wide = graph.first[n], graph.first[n + 1] - graph.first[n]
        new, old = tree.new[n], labels[n]
        total += graph.costs[a + new] - graph.costs[a + old]
        for k in range(graph.at[n], graph.at[n + 1]):
            m = graph.other[k]
            if tree.place[m] < tree.place[n]:  # outside, or an edge of the tree for the first time
                row, before = graph.row[k], labels[m] * wide + old
                after = (tree.new[m] if tree.place[m] >= 0 else labels[m]) * wide + new
                total += graph.pairs[row + after] - graph.pairs[row + before]
    return total


@numba.njit(cache=True, nogil=True)
def _hold(held: Held, tree: _Tree, size: int, labels: Labels, after: Array) -> None:
    """Adds to `after` the memory of the tree's new labels less that of its old ones."""
    for x in range(size):
        n = tree.nodes[x]
        new, old, many = tree.new[n], labels[n], held.at[n + 1] - held.at[n]
        if new != old:
            for k in range(many):
                more = (
                    held.values[held.start[n] + new * many + k]
                    - held.values[held.start[n] + old * many + k]
                )
                after[held.time[held.at[n] + k]] += more


@numba.njit(cache=True, nogil=True)
def _over(before: Array, after: Array) -> tuple[float, bool]:
    """The excess over the room in `after` less that in `before`, summed over times, and whether
    `after` is within the room."""
    more, within = 0.0, True
    for t in range(len(after)):
        more += max(after[t], 0.0) - max(before[t], 0.0)
        within = within and after[t] <= 0.0
    return more, within


@numba.njit(cache=True, nogil=True)
def _clear(graph: Graph, tree: _Tree, size: int, labels: Labels) -> None:
    """Resets the tree's buffers for the next tree."""
    for x in range(size):
        n = tree.nodes[x]
        tree.place[n], tree.touching[n], tree.new[n] = -1, 0, labels[n]
        for k in range(graph.at[n], graph.at[n + 1]):
            tree.touching[graph.other[k]] = 0


@numba.njit(cache=True, nogil=True)
def anneal(
    graph: Graph,
    held: Held,
    labels: Labels,
    excess: Array,
    prices: Array,
    priced: Array,
    weight: float,
    heat: float,
    cool: float,
    noise: Array,
    moves: int,
    most: int,
    seed: int,
    best: Labels,
) -> float:
    """Draws `moves` trees of up to `most` nodes while the temperature falls from `heat` to `cool`;
    updates `labels` and `excess`.

    `priced` are the states' costs with memory at `prices`; `noise` are Gumbel numbers, used in
    stretches. Writes the best labels within the room to `best`; returns their cost less that of the
    labels at first, infinite if none came within the room."""
    np.random.seed(seed)
    num = len(labels)
    tree = _Tree(
        np.empty(num, np.int64),
        np.zeros(num, np.int64),
        np.full(num, -1),
        np.zeros(num, np.int64),
        np.empty(2 * len(graph.other) + 1, np.int64),
        np.empty(len(graph.costs)),
        labels.copy(),
    )
    after, found, now = excess.copy(), np.inf, 0.0
    strained = len(excess) > 0 and excess.max() > 0.0
    for index in range(moves):
        temperature = heat * (cool / heat) ** (index / moves)
        size = _grow(graph, tree, 2 + int((most - 1) * np.random.random() ** 2))
        _weigh(graph, tree, size, labels, priced, noise, temperature)
        if strained:
            _strain(graph, held, tree, size, excess, prices, weight)
        _draw(graph, tree, size)
        dearer = _dearer(graph, tree, size, labels)
        after[:] = excess
        _hold(held, tree, size, labels, after)
        over, within = _over(excess, after)
        charged = dearer + weight * over
        if charged <= 0.0 or np.random.random() < np.exp(-charged / temperature):
            now += dearer
            excess[:] = after
            strained = not within
            for x in range(size):
                labels[tree.nodes[x]] = tree.new[tree.nodes[x]]
            if within and now < found:
                found = now
                best[:] = labels
        _clear(graph, tree, size, labels)
    return found
