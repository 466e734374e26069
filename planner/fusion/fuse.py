"""Makes chains of elementwise ops one op each: the step as it is planned with `--compile`.

Graph -> Graph. A fused op stands where the last of its members stood; the values that only members
read are gone. Everything after this pass sees an op like any other, whose rule is composed
(`compose.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.dims.subdims import infer
from planner.fusion.drawn import hashed_dropout
from planner.fusion.fusible import NORMS
from planner.fusion.groups import Groups
from planner.graph.fused import FUSED
from planner.graph.graph import Graph, Node, Ref, renumbered

__all__ = ["fused_graph"]


def fused_graph(graph: Graph) -> Graph:
    """The graph with its elementwise chains fused."""
    hashed = hashed_dropout(graph)
    groups = Groups(hashed, infer(hashed))
    if not groups.members:
        return graph
    return renumbered(hashed, list(_nodes(hashed, groups)), hashed.values)


def _nodes(graph: Graph, groups: Groups) -> Iterator[Node]:
    """The nodes of the fused graph in order, with the old numbers of values. A view stands as soon
    as its operand is there, and not at all if only members look at it."""
    there = {value.id for value in graph.values if value.writer is None}
    waiting: list[Node] = []
    wanted = _wanted(graph, groups)
    for index in groups.nodes.order:
        node, group = graph.nodes[index], groups.members.get(index)
        if wanted.isdisjoint(node.results):
            made = None
        elif group is None:
            made = node
        elif index == max(group, key=groups.nodes.place.__getitem__):
            made = _fused_node(graph, groups, group)
        else:
            made = None
        for one in _ready(made, waiting, there):
            there.update(value for value in one.results if value is not None)
            yield one
    assert not waiting, waiting


def _ready(made: Node | None, waiting: list[Node], there: set[int]) -> Iterator[Node]:
    """The node, if its operands are there, and then the waiting views that it lets go; else it
    waits."""
    if made is None:
        return
    if not there.issuperset(made.operands):
        waiting.append(made)
        return
    yield made
    for view in tuple(waiting):
        if view in waiting and there.issuperset(view.operands):
            waiting.remove(view)
            yield view


def _wanted(graph: Graph, groups: Groups) -> set[int | None]:
    """The values that the fused graph needs: all but those that only members read. A group is
    wanted by its last member, whatever that writes."""
    wanted: set[int | None] = {*graph.outputs}
    seen: set[frozenset[int]] = set()
    for index in reversed(groups.nodes.order):
        node, group = graph.nodes[index], groups.members.get(index)
        if group is not None:
            if group not in seen:
                seen.add(group)
                wanted.update(groups.body(group)[1])
            wanted.update(node.results)
        elif not wanted.isdisjoint(node.results):
            wanted.update(node.operands)
    return wanted


def _fused_node(graph: Graph, groups: Groups, group: frozenset[int]) -> Node:
    """The fused op of a group. It has the path of its norm, if one is a member: that is what people
    pin; else that of its last member."""
    body, operands, results = groups.body(group)
    nodes = groups.nodes.sorted(group)
    norms = [node for node in nodes if node.op in NORMS]
    values = [graph.values[value] for value in results]
    return Node(
        index=nodes[-1].index,
        op=FUSED,
        args=(*map(Ref, operands), body),
        kwargs=(),
        results=tuple(results),
        result_shapes=tuple(value.shape for value in values),
        result_dtypes=tuple(value.dtype for value in values),
        phase=nodes[-1].phase,
        path=(norms or nodes)[-1].path,
    )
