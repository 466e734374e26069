"""Makes chains of elementwise ops one op each: the step as it is planned with `--compile`.

Graph -> Graph. A fused op stands where the last of its members stood; the values that only members
read are gone. Everything after this pass sees an op like any other, whose rule is composed
(`compose.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from planner.dims.subdims import infer
from planner.fusion.drawn import hashed_dropout
from planner.fusion.fusible import NORMS
from planner.fusion.groups import Groups
from planner.graph.fused import FUSED
from planner.graph.graph import Graph, Node, Ref, Value, map_refs, result_name

__all__ = ["fused_graph"]


def fused_graph(graph: Graph) -> Graph:
    """The graph with its elementwise chains fused."""
    hashed = hashed_dropout(graph)
    groups = Groups(hashed, infer(hashed))
    return _numbered(hashed, list(_nodes(hashed, groups))) if groups.members else graph


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
    wanted: set[int | None] = {graph.loss, *(p.gradient for p in graph.parameters)}
    wanted |= {value for _, value in (*graph.updates, *graph.reported)}
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


# ------------------------------------------------------------------------------------- new numbers


def _numbered(graph: Graph, nodes: list[Node]) -> Graph:
    """The graph of these nodes, with nodes and values numbered, and results named, in order."""
    given = [value.id for value in graph.values if value.writer is None]
    written = [value for node in nodes for value in node.results if value is not None]
    new = {value: number for number, value in enumerate((*given, *written))}
    counts: Counter[str] = Counter()
    names = [result_name(f"{node.op}.default", counts) for node in nodes]
    values = [replace(graph.values[value], id=new[value]) for value in given]
    for index, node in enumerate(nodes):
        values += _values(graph, node, index, names[index], new)
    return replace(
        graph,
        nodes=tuple(_renumbered(node, index, new) for index, node in enumerate(nodes)),
        values=tuple(values),
        loss=new[graph.loss],
        parameters=tuple(
            replace(p, value=new[p.value], gradient=new[p.gradient]) for p in graph.parameters
        ),
        inputs=tuple(new[v] for v in graph.inputs),
        buffers=tuple(new[v] for v in graph.buffers),
        updates=tuple((new[a], new[b]) for a, b in graph.updates),
        reported=tuple((name, new[v]) for name, v in graph.reported),
    )


def _values(
    graph: Graph, node: Node, index: int, name: str, new: dict[int, int]
) -> Iterator[Value]:
    for value in node.results:
        if value is not None:
            yield replace(graph.values[value], id=new[value], writer=index, name=name)


def _renumbered(node: Node, index: int, new: dict[int, int]) -> Node:
    number: Callable[[int], Ref] = lambda value: Ref(new[value])  # noqa: E731
    return replace(
        node,
        index=index,
        args=map_refs(node.args, number),
        kwargs=map_refs(node.kwargs, number),
        results=tuple(None if value is None else new[value] for value in node.results),
    )
