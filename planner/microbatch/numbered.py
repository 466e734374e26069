"""The nodes of a microbatch's graph in their final order, and numbered by it.

Nodes with provisional numbers of values -> Graph. Totals come first, with copies of all that makes
them; a sum over microbatches right after the op that makes its term; what reads whole sums last.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from planner.graph.graph import Graph, Node, Ref, Value, map_refs, result_name
from planner.graph.sections import is_accumulate, is_total

__all__ = ["in_sections"]


def in_sections(graph: Graph, values: Mapping[int, Value]) -> Graph:
    """The graph with the nodes that some output needs, in the order of their sections; `values`
    are those that its nodes name, by provisional number."""
    nodes = _sums_after_terms(graph.nodes)
    totals = {r for node in nodes if is_total(node) for r in node.results if r is not None}
    outputs = [graph.loss, *(p.gradient for p in graph.parameters)]
    outputs += [v for _, v in (*graph.reported, *graph.updates)]
    rest = _needed(nodes, outputs, stop=totals)
    before, forms = _copied(
        _needed(nodes, totals & {v for node in rest for v in node.operands}), values, totals
    )
    body, after = _body_first(graph, rest)
    return _numbered(graph, [*before, *body, *after], {**values, **forms})


def _body_first(graph: Graph, nodes: Sequence[Node]) -> tuple[list[Node], list[Node]]:
    """The nodes that run in every microbatch, and those that run once at the end."""
    wanted = [node.results[0] for node in nodes if is_accumulate(node)]
    wanted += [new for buffer, new in graph.updates if buffer in graph.carried]
    body = _needed(nodes, [v for v in wanted if v is not None])
    mine = {id(node) for node in body}
    return body, [node for node in nodes if id(node) not in mine]


def _sums_after_terms(nodes: Sequence[Node]) -> list[Node]:
    """The nodes with every sum over microbatches right after the node that makes its term."""
    sums: dict[int, list[Node]] = defaultdict(list)
    for node in nodes:
        if is_accumulate(node):
            sums[node.operands[0]].append(node)
    out: list[Node] = []
    for node in nodes:
        if not is_accumulate(node):
            out.append(node)
            for result in node.results:
                out += sums.get(-1 if result is None else result, [])
    return out


def _needed(nodes: Sequence[Node], wanted: Iterable[int], stop: Iterable[int] = ()) -> list[Node]:
    """The nodes on which the wanted values depend, in order, without those of `stop` and what only
    they need."""
    due, stops, kept = {*wanted}, {*stop}, []
    for node in reversed(nodes):
        mine = {r for r in node.results if r is not None}
        if not due.isdisjoint(mine) and stops.isdisjoint(mine):
            kept.append(node)
            due.update(node.operands)
    return kept[::-1]


def _copied(
    nodes: Sequence[Node], values: Mapping[int, Value], kept: set[int]
) -> tuple[list[Node], dict[int, Value]]:
    """Copies of nodes that write values of their own, but for those `kept`; and these values."""
    free = max(values) + 1
    new: dict[int, int] = {}
    for node in nodes:
        for result in node.results:
            if result is not None and result not in kept:
                new[result] = free + len(new)
    copies = [_renamed(node, new) for node in nodes]
    return copies, {number: replace(values[old], id=number) for old, number in new.items()}


def _renamed(node: Node, new: Mapping[int, int], index: int = -1) -> Node:
    """The node with other numbers for the values that it names, as node number `index`."""
    args, kwargs = map_refs((node.args, node.kwargs), lambda v: Ref(new.get(v, v)))
    results = tuple([None if r is None else new.get(r, r) for r in node.results])
    return replace(node, args=args, kwargs=kwargs, results=results, index=index)


def _numbered(graph: Graph, nodes: Sequence[Node], values: Mapping[int, Value]) -> Graph:
    """The graph of these nodes, with values numbered in order: those from outside first."""
    outputs = [graph.loss, *(p.gradient for p in graph.parameters)]
    outputs += [v for _, v in (*graph.reported, *graph.updates)]
    read = {*outputs, *(v for node in nodes for v in node.operands)}
    nodes = [
        node
        if read.issuperset(node.results)
        else replace(node, results=tuple(r if r in read else None for r in node.results))
        for node in nodes
    ]
    given = [v for v in sorted(values) if values[v].writer is None]
    made = [(r, i) for i, node in enumerate(nodes) for r in node.results if r is not None]
    new = {v: n for n, v in enumerate([*given, *(r for r, _ in made)])}
    counts: Counter[str] = Counter()
    names = [result_name(node.op, counts) for node in nodes]
    return replace(
        graph,
        nodes=tuple(_renamed(node, new, i) for i, node in enumerate(nodes)),
        values=(
            *(replace(values[v], id=new[v]) for v in given),
            *(replace(values[r], id=new[r], writer=i, name=names[i]) for r, i in made),
        ),
        loss=new[graph.loss],
        parameters=tuple(
            replace(p, value=new[p.value], gradient=new[p.gradient]) for p in graph.parameters
        ),
        inputs=tuple(new[v] for v in graph.inputs),
        buffers=tuple(new[v] for v in graph.buffers),
        updates=tuple((new[a], new[b]) for a, b in graph.updates),
        reported=tuple((n, new[v]) for n, v in graph.reported),
        carried=tuple(new[v] for v in graph.carried),
    )
