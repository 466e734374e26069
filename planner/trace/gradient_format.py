"""The gradients of a graph, each cast to the format in which they are summed over ranks.

Graph -> Graph. A cast stands right after the op that makes the gradient, so that its reduction may
start there. A gradient that backward itself casts from the wanted format is taken before that cast.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from planner.graph.graph import Graph, Node, Ref, Value, map_refs, result_name, without_unread

__all__ = ["CAST", "cast_of", "with_gradients_in"]

CAST = "aten._to_copy.default"


def with_gradients_in(graph: Graph, dtype: str) -> Graph:
    """The graph with all gradients in `dtype` (torch's name without `torch.`); the same graph if
    they are already, or if `dtype` is empty."""
    values = graph.values
    if not dtype or all(values[p.gradient].dtype == dtype for p in graph.parameters):
        return graph
    graph = _before_casts(graph, dtype)
    wrong = {p.gradient for p in graph.parameters if graph.values[p.gradient].dtype != dtype}
    return _with_casts(graph, wrong, dtype)


def _before_casts(graph: Graph, dtype: str) -> Graph:
    """The graph whose gradients are what backward casts, if that has the format `dtype`."""
    taken = []
    for parameter in graph.parameters:
        writer = graph.values[parameter.gradient].writer
        node = None if writer is None else graph.nodes[writer]
        if node is not None and node.op == CAST:
            source = graph.values[node.operands[0]]
            if source.dtype == dtype and source.kind == "activation":
                parameter = replace(parameter, gradient=source.id)
        taken.append(parameter)
    return without_unread(replace(graph, parameters=tuple(taken)))


def _with_casts(graph: Graph, wrong: set[int], dtype: str) -> Graph:
    """The graph with a cast of each value in `wrong`, which replaces it as a gradient. Nodes and
    values are numbered, and results named, as if the casts had been recorded."""
    new = {value.id: value.id for value in graph.values if value.writer is None}
    values = [value for value in graph.values if value.writer is None]
    assert [value.id for value in values] == list(range(len(values)))
    cast: dict[int, int] = {}
    nodes: list[Node] = []
    counts: Counter[str] = Counter()

    def add(node: Node, results: tuple[Value | None, ...]) -> tuple[int | None, ...]:
        name, ids = result_name(node.op, counts), []
        for value in results:
            ids.append(None if value is None else len(values))
            if value is not None:
                values.append(replace(value, id=len(values), name=name, writer=len(nodes)))
        nodes.append(replace(node, index=len(nodes), results=tuple(ids)))
        return tuple(ids)

    for node in graph.nodes:
        args, kwargs = map_refs((node.args, node.kwargs), lambda v: Ref(new[v]))
        results = tuple(None if r is None else graph.values[r] for r in node.results)
        made = add(replace(node, args=args, kwargs=kwargs), results)
        for old, value in zip(node.results, made, strict=True):
            if old is None or value is None:
                continue
            new[old] = value
            if old in wrong:
                (result,) = add(
                    cast_of(values[value], dtype, phase=node.phase, path=node.path),
                    (replace(values[value], dtype=dtype),),
                )
                assert result is not None
                cast[old] = result
    return replace(
        graph,
        nodes=tuple(nodes),
        values=tuple(values),
        loss=new[graph.loss],
        parameters=tuple(
            replace(p, gradient=cast.get(p.gradient, new[p.gradient])) for p in graph.parameters
        ),
        updates=tuple((new[a], new[b]) for a, b in graph.updates),
        reported=tuple((n, new[v]) for n, v in graph.reported),
    )


def cast_of(value: Value, dtype: str, *, phase: str, path: str) -> Node:
    """A cast of a value, as recording would spell it; index and result are still to be set."""
    return Node(
        index=0,
        op=CAST,
        args=(Ref(value.id),),
        kwargs=(("dtype", f"torch.{dtype}"),),
        results=(None,),
        result_shapes=(value.shape,),
        result_dtypes=(dtype,),
        phase=phase,
        path=path,
    )
