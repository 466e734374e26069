"""The `Body` of a group of nodes: its members, with the views between them, and what comes in and
goes out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import dropwhile

from planner.dims.roots import is_view
from planner.dims.subdims import SubDims
from planner.fusion.fusible import looks_of
from planner.graph.fused import Body, Member
from planner.graph.graph import Graph, Node, Ref, map_refs

__all__ = ["body_for"]


def body_for(
    graph: Graph, dims: SubDims, nodes: Sequence[Node], needed: frozenset[int]
) -> tuple[Body, list[int], list[int]]:
    """The body of nodes in order, and the graph's values that are its operands and its results: the
    values that are `needed` outside."""
    inside = _with_looks(graph, dims, nodes)
    written = {value for node in inside for value in node.results if value is not None}
    operands = list(
        dict.fromkeys(value for node in inside for value in node.operands if value not in written)
    )
    read = {value for node in inside for value in node.operands} | needed
    slots = {value: slot for slot, value in enumerate(operands)}
    for node in inside:
        for value in node.results:
            if value is not None and value in read:
                slots[value] = len(slots)
    results = [v for node in nodes for v in node.results if v is not None and v in needed]
    values = graph.values
    body = Body(
        operands=tuple((values[v].shape, values[v].dtype) for v in operands),
        members=tuple(_member(node, slots) for node in inside),
        results=tuple(slots[value] for value in results),
    )
    return body, operands, results


def _member(node: Node, slots: dict[int, int]) -> Member:
    args, kwargs = map_refs((node.args, node.kwargs), lambda value: Ref(slots[value]))
    return Member(
        op=node.op,
        args=args,
        kwargs=kwargs,
        results=tuple(None if v is None else slots.get(v) for v in node.results),
        shapes=node.result_shapes,
        dtypes=node.result_dtypes,
    )


def _with_looks(graph: Graph, dims: SubDims, nodes: Sequence[Node]) -> list[Node]:
    """The nodes, each after the views of other members' results that it reads, and after the pieces
    of tensors that it reads: it is one pass over the whole tensor, not one over each piece."""
    members = {node.index for node in nodes}
    out: dict[int, Node] = {}
    for node in nodes:
        for value in node.operands:
            for look in _looks_before(graph, dims, value, members):
                out.setdefault(look.index, look)
        out[node.index] = node
    return list(out.values())


def _looks_before(graph: Graph, dims: SubDims, value: int, members: set[int]) -> list[Node]:
    """The views that lead to a value from a member's result; if it comes from outside, from the
    tensor that it is a piece of."""
    chain, base = looks_of(graph, dims, value)
    writer = graph.values[base].writer
    if writer in members:
        return chain
    if writer is None:
        return []
    return [*dropwhile(lambda node: is_view(dims, node.index), chain)]
