"""Where the forward pass may be cut: its units, and what crosses between two of them.

Graph -> units in order. A cut lies between two ops of forward, where few values cross: between
blocks, or elsewhere where one tensor does.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from cost_models.memory import dtype_bytes
from planner.dims.subdims import SubDims
from planner.dims.ties import block_of
from planner.graph.graph import Graph
from planner.stages.free import free_nodes

__all__ = ["Unit", "units_of"]


#: The most values that cross between two parts of a model where it is cut.
_FEW = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Ops of forward that stay together: `nodes` are their numbers in order, without those that
    every stage runs for itself; `block` is the layer that they are in, or empty. `out_bytes` are
    those that cross from here, and from earlier units, to later ones, of one microbatch."""

    nodes: tuple[int, ...]
    block: str
    out_bytes: int
    num_out: int


def units_of(graph: Graph, dims: SubDims) -> tuple[Unit, ...]:
    """The units of a graph's forward pass. One ends where only one value crosses to later ones, where
    a block ends, and where a part of the model does (an encoder, say), if few values cross there."""
    free = free_nodes(graph, dims)
    placed = [n.index for n in graph.nodes if n.phase == "forward" and n.index not in free]
    sources = _Sources(graph, placed, free)
    crossing = _crossing(graph, placed, sources)
    blocks = [block_of(graph.nodes[index].path) for index in placed]
    children = [graph.nodes[index].path.partition(".")[0] for index in placed]
    through = _through_ops(graph, sources)
    cuts = [
        at
        for at in range(len(placed) - 1)
        if at not in through
        and (
            len(crossing[at]) == 1
            or blocks[at] != blocks[at + 1]
            or (_ends(children, at) and len(crossing[at]) <= _FEW)
        )
    ]
    out: list[Unit] = []
    first = 0
    for at in (*cuts, len(placed) - 1):
        out.append(
            Unit(
                nodes=tuple(placed[first : at + 1]),
                block=_only(blocks[first : at + 1]),
                out_bytes=sum(_nbytes(graph, value) for value in crossing[at]),
                num_out=len(crossing[at]),
            )
        )
        first = at + 1
    return tuple(out)


def _ends(children: Sequence[str], at: int) -> bool:
    """Whether a part of the model, of several ops, ends with the op at a place."""
    return children[at] not in ("", *children[at + 1 :]) and children[at] in children[:at]


def _only(blocks: Collection[str]) -> str:
    """The block of all ops, or empty."""
    found = set(blocks)
    return found.pop() if len(found) == 1 else ""


class _Sources:
    """The values that forward's placed nodes make, by the place of their writer, and what the
    results of free nodes are made of: such values, or those given to the step."""

    def __init__(self, graph: Graph, placed: Sequence[int], free: Collection[int]) -> None:
        self.order = {index: at for at, index in enumerate(placed)}
        self.written = {
            value: at
            for index, at in self.order.items()
            for value in graph.nodes[index].results
            if value is not None
        }
        self._of_free: dict[int, frozenset[int]] = {}
        for node in graph.nodes:
            if node.index in free:
                read = self.of(node.operands)
                self._of_free |= {v: read for v in node.results if v is not None}

    def of(self, values: Iterable[int]) -> frozenset[int]:
        """What the values are made of."""
        return frozenset().union(*(self._of_free.get(v, frozenset({v})) for v in values))


def _crossing(graph: Graph, placed: Sequence[int], sources: _Sources) -> list[frozenset[int]]:
    """For every place after an op, the values that are made before it and read by forward after
    it, those that free ops read on behalf of others included."""
    last: dict[int, int] = {}
    for at, index in enumerate(placed):
        for value in sources.of(graph.nodes[index].operands):
            if value in sources.written:
                last[value] = at
    out: list[set[int]] = [set() for _ in placed]
    for value, reader in last.items():
        for at in range(sources.written[value], reader):
            out[at].add(value)
    return [frozenset(values) for values in out]


def _through_ops(graph: Graph, sources: _Sources) -> set[int]:
    """The places at which a cut would run through an op of backward: one that needs a parameter of
    the earlier stage, or makes its gradient, and something that only the later one has."""
    readers: dict[int, list[int]] = {p.value: [] for p in graph.parameters}
    for index, at in sources.order.items():
        for value in sources.of(graph.nodes[index].operands):
            if value in readers:
                readers[value].append(at)
    due: dict[int, int] = defaultdict(int)
    latest: dict[int, int] = {}
    for parameter in graph.parameters:
        found = readers[parameter.value] or [0]
        due[parameter.gradient] = max(due[parameter.gradient], min(found))
        latest[parameter.gradient] = max(found)
    through: set[int] = set()
    for node in reversed(graph.nodes):
        if node.phase == "forward":
            continue
        made_of = sources.of(node.operands)
        held = [readers[v] for v in made_of if readers.get(v)]
        least = max(
            [
                *(sources.written.get(v, 0) for v in made_of),
                *(due[r] for r in node.results if r is not None),
            ],
            default=0,
        )
        for found in held:
            least = max(least, next((at for at in found if at >= least), found[-1]))
        highest = [max(found) for found in held]
        highest += [latest[r] for r in node.results if r in latest]
        through.update(range(min(highest, default=least), least))
        for value in node.operands:
            due[value] = max(due[value], least)
    return through


def _nbytes(graph: Graph, value: int) -> int:
    one = graph.values[value]
    return math.prod(one.shape) * dtype_bytes(one.dtype)
