"""Views resolved to the tensor they look at.

A view moves no data and its sub-dims are those of its operand in another order, so for placement it
*is* its operand: the ILP has no node for it, and a change of layout happens on the tensor itself.
Exact: a redistribution costs the same before or after.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from planner.dims.subdims import SubDims
from planner.graph.graph import Graph
from planner.graph.layout import Layout

__all__ = ["Root", "is_view", "resolve"]


@dataclass(frozen=True, slots=True)
class Root:
    """The value looked at, and where flat sub-dim k of the view stands in it."""

    value: int
    places: tuple[int, ...]

    def layouts(self, seen: Iterable[Layout]) -> list[Layout]:
        """`layout` of each."""
        every = list(seen)
        placed = {one: self.layout(one) for one in set(every)}
        return [placed[one] for one in every]

    def layout(self, seen: Layout) -> Layout:
        """The root's layout that gives the view the layout `seen`."""
        return tuple(self.places[p] if p >= 0 else p for p in seen)

    def seen(self, layout: Layout) -> Layout:
        """The layout that the view has where its root has `layout`."""
        return tuple(self.places.index(p) if p >= 0 else p for p in layout)


def is_view(dims: SubDims, node: int) -> bool:
    """Whether the node only looks at its operand."""
    return dims.ops[node].signature.view


def resolve(graph: Graph, dims: SubDims) -> tuple[Root, ...]:
    """For every value, its root (itself, where no view made it)."""
    roots = [Root(v.id, tuple(range(len(dims.atoms[v.id])))) for v in graph.values]
    for node in graph.nodes:
        if not is_view(dims, node.index):
            continue
        (operand,), (result,) = node.operands, node.results
        if result is None:
            continue
        op, under = dims.ops[node.index], roots[operand]
        places = tuple(under.places[op.operands[0].index(leaf)] for leaf in op.results[0])
        roots[result] = Root(under.value, places)
    return tuple(roots)
