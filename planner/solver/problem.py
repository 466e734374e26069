"""The strategy-selection problem: one choice a node, costs on nodes and on pairs, memory over time.

    minimise   sum_n c_n[x_n] + sum_(u,v) C_uv[x_u, x_v]
    such that  for every time t:  sum_n p_n(t) m_n[x_n] + sum_(uv) p_uv(t) M_uv[x_u, x_v] <= limit

Plain numpy, knows nothing of models or meshes; an infinite cost forbids a choice or a pair.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Edge", "Problem", "Usage"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Bytes held, `nbytes[choice]` of node `node` or `nbytes[choice_u, choice_v]` of edge `edge`, as often at each time as
    `profile` says (a repeated layer holds its tensors once a layer)."""

    nbytes: Array
    profile: Array
    node: int | None = None
    edge: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A pairwise cost: `cost[i, j]` where `u` chooses i and `v` chooses j; u < v, one edge a pair of nodes."""

    u: int
    v: int
    cost: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Nodes by number, edges, and usages against one `limit` in bytes (infinite: no limit)."""

    costs: tuple[Array, ...]
    edges: tuple[Edge, ...]
    usages: tuple[Usage, ...] = ()
    horizon: int = 0
    limit: float = float("inf")
    names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        seen = set()
        for edge in self.edges:
            assert edge.u < edge.v and (edge.u, edge.v) not in seen, (edge.u, edge.v)
            assert edge.cost.shape == (len(self.costs[edge.u]), len(self.costs[edge.v]))
            seen.add((edge.u, edge.v))

    def cost(self, choice: tuple[int, ...]) -> float:
        """The objective of a choice; infinite where it takes a forbidden pair."""
        total = sum(float(c[x]) for c, x in zip(self.costs, choice, strict=True))
        return total + sum(float(e.cost[choice[e.u], choice[e.v]]) for e in self.edges)

    def memory(self, choice: tuple[int, ...]) -> Array:
        """Bytes held at every time under a choice."""
        held = np.zeros(self.horizon)
        for usage in self.usages:
            nbytes = float(usage.nbytes[self.picked(usage, choice)])
            if nbytes:
                held += nbytes * usage.profile
        return held

    def picked(self, usage: Usage, choice: tuple[int, ...]) -> tuple[int, ...]:
        """The index into `usage.nbytes` that a choice picks."""
        if usage.node is not None:
            return (choice[usage.node],)
        assert usage.edge is not None
        edge = self.edges[usage.edge]
        return (choice[edge.u], choice[edge.v])
