"""A problem as flat arrays, the form that compiled kernels read.

States are in one array, node by node. Edges' tables are in one array, each row-major with its
smaller node first. Nodes' edges are in one array, each node's in the order of their other node, so
that those to earlier nodes come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.solver.problem.problem import Array, Problem, forbids
from planner.solver.reduce.working import Labels

__all__ = ["Flat"]


@dataclass(frozen=True, kw_only=True)
class Flat:
    """`first[n]` node n's first state, `table[e]` edge e's first pair, `near[at[n] : at[n + 1]]`
    node n's edges."""

    costs: Array
    first: Labels
    u: Labels
    v: Labels
    pairs: Array
    table: Labels
    near: Labels
    at: Labels

    @staticmethod
    def of(problem: Problem) -> Flat:
        """The arrays of a reduced problem: one edge per pair of nodes, the smaller node first."""
        sizes = np.array([len(c) for c in problem.costs], dtype=np.int64)
        u = np.array([e.u for e in problem.edges], dtype=np.int64)
        v = np.array([e.v for e in problem.edges], dtype=np.int64)
        assert (u < v).all()
        pairs = [e.cost.ravel() for e in problem.edges]
        ends, others = np.concatenate([u, v]), np.concatenate([v, u])
        order = np.lexsort((others, ends))
        return Flat(
            costs=_joined(problem.costs),
            first=_starts(sizes),
            u=u,
            v=v,
            pairs=_joined(pairs),
            table=_starts(np.array([len(p) for p in pairs], dtype=np.int64)),
            near=np.tile(np.arange(len(u)), 2)[order],
            at=_starts(np.bincount(ends, minlength=len(sizes))),
        )

    @cached_property
    def num_nodes(self) -> int:
        return len(self.first) - 1

    @cached_property
    def node_of(self) -> Labels:
        """The node of each state."""
        found: Labels = np.repeat(np.arange(self.num_nodes), np.diff(self.first))
        return found

    @cached_property
    def messages(self) -> tuple[Labels, Labels, int]:
        """Where each edge's messages to its two nodes start, and how long all of them are."""
        sizes = np.diff(self.first)
        to_u = _starts(sizes[self.u] + sizes[self.v])
        return to_u[:-1], to_u[:-1] + sizes[self.u], int(to_u[-1])

    def cost(self, labels: Labels) -> float:
        """The cost of one strategy per node."""
        wide = np.diff(self.first)[self.v]
        taken = self.table[:-1] + labels[self.u] * wide + labels[self.v]
        return float(self.costs[self.first[:-1] + labels].sum() + self.pairs[taken].sum())


def _joined(tables: tuple[Array, ...] | list[Array]) -> Array:
    found = (
        np.concatenate([np.asarray(t, dtype=np.float64) for t in tables])
        if len(tables)
        else np.zeros(0)
    )
    found[forbids(found)] = np.inf
    return found


def _starts(sizes: Labels) -> Labels:
    found: Labels = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return found
