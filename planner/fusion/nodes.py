"""A graph's nodes as fusing looks at them: which may be members, in what order, and who reads what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from planner.dims.subdims import SubDims
from planner.fusion.fusible import fusible_nodes, home_of, looks, looks_of
from planner.fusion.order import early_order
from planner.graph.graph import Graph, Node
from planner.graph.sections import sections_of

__all__ = ["STEP", "Home", "Members", "Nodes"]

#: The indices of the nodes of a group.
Members = frozenset[int]
#: Layer, phase, section.
Home = tuple[str, str, str]
#: The reader of what the step returns or keeps.
STEP = -1


class Nodes:
    """The nodes of a graph. `fusible` are those that may be members; those of one op have the same
    of `homes`: layer, phase and section of the step in microbatches. `order` are all indices as the
    fused graph has them, `place` is where each stands there; `readers` has, for each value, the
    nodes that read it, itself or through views."""

    def __init__(self, graph: Graph, dims: SubDims) -> None:
        self.graph, self.dims = graph, dims
        inner = frozenset(prefix for node in graph.nodes for prefix in _around(node.path))
        self.homes: list[Home] = [
            (home_of(node.path, inner), node.phase, section)
            for node, section in zip(graph.nodes, sections_of(graph), strict=True)
        ]
        self.fusible = fusible_nodes(graph, dims)
        self.order = early_order(graph, dims, self.fusible, self.homes)
        self.place = {index: place for place, index in enumerate(self.order)}
        self.readers = self._all_readers()

    def _all_readers(self) -> dict[int, Members]:
        graph, readers = self.graph, defaultdict[int, set[int]](set)
        for value in graph.outputs:
            readers[value].add(STEP)
        for node in reversed(graph.nodes):
            if looks(self.dims, node.index):
                through = [readers[v] for v in node.results if v is not None]
                readers[node.operands[0]] |= set().union(*through)
            else:
                for value in node.operands:
                    readers[value].add(node.index)
        return {value: frozenset(found) for value, found in readers.items()}

    def origin(self, value: int) -> int | None:
        """The node that writes the tensor that the value is a view of, if any does."""
        return self.graph.values[looks_of(self.graph, self.dims, value)[1]].writer

    def sorted(self, indices: Iterable[int]) -> list[Node]:
        """The nodes of some indices, in order."""
        return [self.graph.nodes[n] for n in sorted(indices, key=self.place.__getitem__)]

    def is_closed(self, members: Members) -> bool:
        """Whether nobody outside reads a member's result before the last member: then nothing that
        a member needs depends on another member from outside."""
        last = max(map(self.place.__getitem__, members))
        return all(
            reader in members or reader == STEP or self.place[reader] > last
            for member in members
            for value in self.graph.nodes[member].results
            if value is not None
            for reader in self.readers.get(value, ())
        )


def _around(path: str) -> Iterator[str]:
    """The paths of the modules around a module."""
    while path:
        path = path.rpartition(".")[0]
        yield path
