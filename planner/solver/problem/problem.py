"""The strategy-selection problem: a choice per node, costs on nodes and pairs, memory over time.

    minimise   sum_n c_n[x_n] + sum_(u,v) C_uv[x_u, x_v]
    such that  for every time t:  base(t) + sum_n p_n(t) m_n[x_n] <= limit

Plain numpy, knows nothing of models or meshes. A cost of `FORBIDDEN` or more, infinity included,
forbids a choice or a pair. Where all tables are integers, cost and memory of a choice are integers,
exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.errors import BadValue

__all__ = [
    "FORBIDDEN",
    "Array",
    "Choice",
    "Edge",
    "Problem",
    "Span",
    "Numbers",
    "Usage",
    "forbids",
    "spans_of",
]

Array = NDArray[np.float64]
#: A table of costs or bytes: floats, or integers that are to be added exactly.
Numbers = NDArray[Any]
Choice = tuple[int, ...]
#: From which time to which (exclusive), and how many times over.
Span = tuple[int, int, float]

#: The contest marks impossible choices by a cost of 10^18; its other costs are at most 10^14.
FORBIDDEN = 1e17


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Bytes held by a node: `nbytes[choice]`, at each time of `spans` as many times over as the
    span says (a repeated layer holds its tensors once per layer)."""

    node: int
    nbytes: Numbers
    spans: tuple[Span, ...]

    def times(self, at: int) -> float:
        """How many times over the usage is held at a time."""
        return sum(times for start, end, times in self.spans if start <= at < end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A pairwise cost: `cost[i, j]` if `u` chooses i and `v` chooses j. Parallel edges add up; an
    edge from a node to itself costs its diagonal."""

    u: int
    v: int
    cost: Numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Nodes by number, edges, and usages against one `limit` in bytes (infinite: no limit).
    `base` are the bytes held at each time under any choice, `clock` the name of each time if that
    is not its number."""

    costs: tuple[Numbers, ...]
    edges: tuple[Edge, ...] = ()
    usages: tuple[Usage, ...] = ()
    horizon: int = 0
    limit: float = float("inf")
    base: Numbers | None = None
    clock: tuple[int, ...] = ()
    names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Raises BadValue, in one line, if the parts do not make up a problem."""
        _check_times(self)
        _check_numbers("costs of node", self.costs)
        _check_numbers("costs of edge", [edge.cost for edge in self.edges])
        _check_numbers(
            "usages of node",
            [usage.nbytes for usage in self.usages],
            least=0,
            names=[u.node for u in self.usages],
        )
        _check_edges(self)
        _check_usages(self)
        if np.isnan(self.limit) or self.limit < 0:
            raise BadValue(
                f"a limit of {self.limit} bytes: give a number of at least 0, or leave it out "
                "for none"
            )

    @property
    def is_integral(self) -> bool:
        """Whether costs add up exactly, as integers."""
        return all(c.dtype.kind in "iu" for c in self.costs) and all(
            e.cost.dtype.kind in "iu" for e in self.edges
        )

    @property
    def num_pairs(self) -> int:
        """The number of entries in all tables between nodes."""
        return sum(edge.cost.size for edge in self.edges)

    def cost(self, choice: Choice) -> float:
        """The objective of a choice, an exact integer if all costs are; infinite if the choice is
        forbidden."""
        taken = [table[x] for table, x in zip(self.costs, choice, strict=True)]
        taken += [edge.cost[choice[edge.u], choice[edge.v]] for edge in self.edges]
        values = np.array(taken, dtype=object)
        if len(values) and max(values) >= FORBIDDEN:
            return float("inf")
        return sum(int(v) for v in taken) if self.is_integral else float(sum(map(float, taken)))

    def plus(self, cost: float) -> Problem:
        """The problem with a constant cost: what counts as a small share of the cost depends on
        it."""
        first, *others = self.costs
        return replace(self, costs=(first + cost, *others))

    def room(self, at: int) -> float:
        """Bytes left for choices at a time: the limit less what is always held."""
        return self.limit if self.base is None else self.limit - float(self.base[at])

    def memory(self, choice: Choice) -> Numbers:
        """Bytes held at every time under a choice."""
        whole = all(
            u.nbytes.dtype.kind in "iu" and all(float(s[2]).is_integer() for s in u.spans)
            for u in self.usages
        )
        steps = np.zeros(self.horizon + 1, dtype=np.int64 if whole else np.float64)
        for usage in self.usages:
            nbytes = usage.nbytes[choice[usage.node]]
            if nbytes:
                for start, end, times in usage.spans:
                    held = nbytes * (int(times) if whole else times)
                    steps[start] += held
                    steps[end] -= held
        held = np.cumsum(steps[:-1])
        return held if self.base is None else held + self.base

    def peak(self, choice: Choice) -> float:
        """The most bytes held at any time."""
        held = self.memory(choice)
        return held.max().item() if len(held) else 0

    def fits(self, choice: Choice) -> bool:
        """Whether a choice stays within the limit, up to 1e-9 of it if bytes are floats."""
        peak = self.peak(choice)
        return peak <= self.limit if isinstance(peak, int) else peak <= self.limit * (1 + 1e-9)


def forbids(table: Numbers) -> NDArray[np.bool_]:
    """The entries of a table of costs that are forbidden."""
    found: NDArray[np.bool_] = table >= FORBIDDEN
    return found


def spans_of(profile: Array) -> tuple[Span, ...]:
    """A profile over time as spans: its stretches of one value that is not zero."""
    edges = np.flatnonzero(np.diff(profile, prepend=0.0, append=0.0))
    return tuple(
        (int(a), int(b), float(profile[a])) for a, b in itertools.pairwise(edges) if profile[a]
    )


def _check_numbers(
    what: str,
    tables: Sequence[Numbers],
    *,
    least: float = -FORBIDDEN,
    names: Iterable[int] | None = None,
) -> None:
    """Raises BadValue for a NaN or a number below `least`, naming the first table that has one."""
    if not tables:
        return
    flat = np.concatenate([table.ravel() for table in tables])
    bad = ~(flat >= least)
    if bad.any():
        where = np.repeat(np.arange(len(tables)), [table.size for table in tables])[bad][0]
        name = list(names)[where] if names is not None else where
        told = (
            "is not a number"
            if np.isnan(flat[bad][0])
            else f"is below {'0' if least == 0 else '-10^17'}"
        )
        raise BadValue(f"{what} {name}: {flat[bad][0]} {told}")


def _check_times(problem: Problem) -> None:
    """Raises BadValue unless base, clock and spans cover the same times, and names all nodes."""
    if problem.horizon < 0:
        raise BadValue(f"a horizon of {problem.horizon} times: give a number of at least 0")
    if problem.base is not None:
        if problem.base.shape != (problem.horizon,):
            raise BadValue(
                f"base has shape {problem.base.shape}, there are {problem.horizon} times: give bytes for each"
            )
        _check_numbers("base of time", [problem.base], least=0)
    # A clock may also name the end of the last time.
    if problem.clock and len(problem.clock) not in (problem.horizon, problem.horizon + 1):
        raise BadValue(f"clock names {len(problem.clock)} times, there are {problem.horizon}")
    if problem.names and len(problem.names) != len(problem.costs):
        raise BadValue(f"{len(problem.names)} names for {len(problem.costs)} nodes")
    for index, table in enumerate(problem.costs):
        if table.ndim != 1:
            raise BadValue(f"node {index} has costs of shape {table.shape}: give one per strategy")


def _check_edges(problem: Problem) -> None:
    sizes = [len(table) for table in problem.costs]
    if 0 in sizes:
        raise BadValue(
            f"node {sizes.index(0)} has no strategy to choose: give every node at least one"
        )
    for index, edge in enumerate(problem.edges):
        if not (0 <= edge.u < len(sizes) and 0 <= edge.v < len(sizes)):
            raise BadValue(
                f"edge {index} joins nodes {edge.u} and {edge.v}, but there are {len(sizes)}, "
                "counted from 0"
            )
        if edge.cost.shape != (sizes[edge.u], sizes[edge.v]):
            raise BadValue(
                f"edge {index} has a table of shape {edge.cost.shape}, its nodes {edge.u} and {edge.v} have "
                f"{sizes[edge.u]} and {sizes[edge.v]} strategies"
            )


def _check_usages(problem: Problem) -> None:
    for usage in problem.usages:
        if not 0 <= usage.node < len(problem.costs):
            raise BadValue(
                f"a usage of node {usage.node}, but there are {len(problem.costs)}, counted from 0"
            )
        if usage.nbytes.shape != problem.costs[usage.node].shape:
            raise BadValue(
                f"node {usage.node} has {len(problem.costs[usage.node])} strategies, but {usage.nbytes.size} usages"
            )
        if any(
            not (0 <= start <= end <= problem.horizon and times >= 0)
            for start, end, times in usage.spans
        ):
            raise BadValue(
                f"node {usage.node} holds memory over {usage.spans}, outside of 0 to {problem.horizon}"
            )
