"""The nodes of a microbatch's graph in their final order, and numbered by it.

Nodes with provisional numbers of values -> Graph. Totals come first, with copies of all that makes
them; a sum over microbatches right after the op that makes its term; what reads whole sums last.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from planner.graph.graph import Graph, Node, Value, needed, renamed, renumbered
from planner.graph.sections import is_accumulate, is_total

__all__ = ["in_sections"]


def in_sections(graph: Graph, values: Mapping[int, Value]) -> Graph:
    """The graph with the nodes that some output needs, in the order of their sections; `values`
    are those that its nodes name, by provisional number."""
    nodes = _sums_after_terms(graph.nodes)
    totals = {r for node in nodes if is_total(node) for r in node.results if r is not None}
    rest = needed(nodes, graph.outputs, stop=totals)
    before, forms = _copied(
        needed(nodes, totals & {v for node in rest for v in node.operands}), values, totals
    )
    body, after = _body_first(graph, rest)
    made = _only_read(graph, [*before, *body, *after])
    return renumbered(graph, made, [*values.values(), *forms])


def _body_first(graph: Graph, nodes: Sequence[Node]) -> tuple[list[Node], list[Node]]:
    """The nodes that run in every microbatch, and those that run once at the end."""
    wanted = [node.results[0] for node in nodes if is_accumulate(node)]
    wanted += [new for buffer, new in graph.updates if buffer in graph.carried]
    body = needed(nodes, [v for v in wanted if v is not None])
    mine = {id(node) for node in body}
    return body, [node for node in nodes if id(node) not in mine]


def _sums_after_terms(nodes: Sequence[Node]) -> list[Node]:
    """The nodes with every sum over microbatches right after the node that makes its term."""
    sums: dict[int | None, list[Node]] = defaultdict(list)
    for node in nodes:
        if is_accumulate(node):
            sums[node.operands[0]].append(node)
    out: list[Node] = []
    for node in nodes:
        if not is_accumulate(node):
            out.append(node)
            for result in node.results:
                out += sums.get(result, [])
    return out


def _copied(
    nodes: Sequence[Node], values: Mapping[int, Value], kept: set[int]
) -> tuple[list[Node], list[Value]]:
    """Copies of nodes that write values of their own, but for those `kept`; and these values."""
    new = {value: value for value in values}
    forms: list[Value] = []
    for node in nodes:
        for result in node.results:
            if result is not None and result not in kept:
                new[result] = len(values) + len(forms)
                forms.append(replace(values[result], id=new[result]))
    return [renamed(node, new, node.index) for node in nodes], forms


def _only_read(graph: Graph, nodes: Sequence[Node]) -> list[Node]:
    """The nodes of the graph, without results that nothing reads."""
    read = {*graph.outputs, *(v for node in nodes for v in node.operands)}
    return [
        node
        if read.issuperset(node.results)
        else replace(node, results=tuple(r if r in read else None for r in node.results))
        for node in nodes
    ]
