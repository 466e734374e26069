"""Views, resolved to the tensor that they are views of.

A view moves no data and its sub-dims are those of its operand in another order, so for placement it
*is* its operand: the ILP has no node for it, and a change of layout happens on the tensor itself.
This is exact: a redistribution costs the same before the view and after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from planner.dims.subdims import SubDims
from planner.graph.graph import Graph
from planner.graph.layout import Layout

__all__ = ["Root", "is_view", "roots_of"]


@dataclass(frozen=True, slots=True)
class Root:
    """The value that a view is a view of, and the place in it of the view's flat sub-dim k."""

    value: int
    places: tuple[int, ...]

    def layouts(self, seen: Iterable[Layout]) -> list[Layout]:
        """`layout` of each of `seen`."""
        every = list(seen)
        placed = {one: self.layout(one) for one in set(every)}
        return [placed[one] for one in every]

    def layout(self, seen: Layout) -> Layout:
        """The root's layout that gives the view the layout `seen`."""
        return tuple(self.places[p] if p >= 0 else p for p in seen)

    def seen(self, layout: Layout) -> Layout:
        """The layout that the view has if its root has `layout`."""
        return tuple(self.places.index(p) if p >= 0 else p for p in layout)


def is_view(dims: SubDims, node: int) -> bool:
    """Whether the node is a view of its operand."""
    return dims.ops[node].signature.view


def roots_of(graph: Graph, dims: SubDims) -> tuple[Root, ...]:
    """For every value, its root (itself if it is no view)."""
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
