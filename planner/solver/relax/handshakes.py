"""Compiled handshakes of `bound`: the same sums and minima in the same order, so the same bits.

A handshake on a table of a few rows is a dozen calls of numpy, each longer than its arithmetic; a
problem with memory takes a hundred thousand of them. Imported only for problems that need them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numba
import numpy as np

from planner.solver.problem.problem import Array, Problem
from planner.solver.reduce.working import Labels

__all__ = ["FlatCosts"]


class FlatCosts:
    """The costs of nodes and edges, one after the other in two flat arrays."""

    def __init__(self, problem: Problem, nodes: Sequence[Array], edges: Sequence[Array]) -> None:
        self.u = np.array([edge.u for edge in problem.edges], dtype=np.int64)
        self.v = np.array([edge.v for edge in problem.edges], dtype=np.int64)
        self.first, self.at = _starts(nodes), _starts(edges)
        self.shapes = [edge.shape for edge in edges]
        self.nodes = np.concatenate([*map(np.ravel, nodes), np.empty(0)])
        self.edges = np.concatenate([*map(np.ravel, edges), np.empty(0)])

    def sweep(self, *, forward: bool) -> float:
        """A handshake on every edge, in order or against it; the bound after it."""
        return float(_sweep(self.nodes, self.first, self.u, self.v, self.edges, self.at, forward))

    def apart(self) -> tuple[list[Array], list[Array]]:
        """The costs of each node and each edge."""
        edges = zip(_parts(self.edges, self.at), self.shapes, strict=True)
        return _parts(self.nodes, self.first), [edge.reshape(shape) for edge, shape in edges]


def _parts(flat: Array, starts: Labels) -> list[Array]:
    return [flat[start:end] for start, end in itertools.pairwise(starts)]


def _starts(arrays: Sequence[Array]) -> Labels:
    starts: Labels = np.cumsum([0, *(a.size for a in arrays)], dtype=np.int64)
    return starts


@numba.njit(cache=True, nogil=True)
def _sweep(
    nodes: Array, first: Labels, u: Labels, v: Labels, edges: Array, at: Labels, forward: bool
) -> float:
    for step in range(len(u)):
        e = step if forward else len(u) - 1 - step
        of_u = nodes[first[u[e]] : first[u[e] + 1]]
        of_v = nodes[first[v[e]] : first[v[e] + 1]]
        _handshake(of_u, of_v, edges[at[e] : at[e + 1]].reshape((len(of_u), len(of_v))))
    return _sum_of_minima(nodes, first) + _sum_of_minima(edges, at)


@numba.njit(cache=True, nogil=True)
def _handshake(of_u: Array, of_v: Array, total: Array) -> None:
    for i in range(len(of_u)):
        for j in range(len(of_v)):
            total[i, j] = total[i, j] + of_u[i] + of_v[j]
        of_u[i] = 0.5 * total[i].min()
        if np.isfinite(of_u[i]):
            total[i] -= of_u[i]
    of_v[:] = np.inf
    for i in range(len(of_u)):
        for j in range(len(of_v)):
            of_v[j] = min(of_v[j], total[i, j])
    for i in range(len(of_u)):
        for j in range(len(of_v)):
            if np.isfinite(of_v[j]):
                total[i, j] -= of_v[j]
        rest = total[i].min()
        if np.isfinite(rest):
            total[i] -= rest
        of_u[i] += rest


@numba.njit(cache=True, nogil=True)
def _sum_of_minima(costs: Array, starts: Labels) -> float:
    total = 0.0
    for k in range(len(starts) - 1):
        total += costs[starts[k] : starts[k + 1]].min()
    return total
