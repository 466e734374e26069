"""The gradients of a graph, each cast to the format in which they are summed over ranks.

Graph -> Graph. A cast stands right after the op that makes the gradient, so that its reduction may
start there. A gradient that backward itself casts from the wanted format is taken before that cast.
"""

from __future__ import annotations

from dataclasses import replace

from planner.graph.graph import Graph, Node, Ref, Value, renumbered, without_unread

__all__ = ["before_cast", "cast_of", "with_gradients_in"]

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
        source = before_cast(graph, parameter.gradient, dtype)
        taken.append(parameter if source is None else replace(parameter, gradient=source))
    return without_unread(replace(graph, parameters=tuple(taken)))


def _with_casts(graph: Graph, wrong: set[int], dtype: str) -> Graph:
    """The graph with a cast of each value in `wrong`, which replaces it as a gradient. Nodes and
    values are numbered, and results named, as if the casts had been recorded."""
    values, nodes, cast = list(graph.values), list[Node](), dict[int, int]()
    for node in graph.nodes:
        nodes.append(node)
        for value in node.results:
            if value is not None and value in wrong:
                result = replace(values[value], id=len(values), dtype=dtype)
                cast[value] = result.id
                values.append(result)
                nodes.append(cast_of(values[value], result, phase=node.phase, path=node.path))
    parameters = tuple(
        replace(p, gradient=cast.get(p.gradient, p.gradient)) for p in graph.parameters
    )
    return renumbered(replace(graph, parameters=parameters), nodes, values)


def before_cast(graph: Graph, value: int, dtype: str) -> int | None:
    """The value in `dtype`, made by an op, that `value` is a cast of; None if it is not one."""
    writer = graph.values[value].writer
    if writer is None or graph.nodes[writer].op != CAST:
        return None
    source = graph.values[graph.nodes[writer].operands[0]]
    return source.id if source.dtype == dtype and source.kind == "activation" else None


def cast_of(value: Value, result: Value, *, phase: str, path: str) -> Node:
    """The cast of a value to `result`, as recording would spell it; its index is still to be
    set."""
    return Node(
        index=-1,
        op=CAST,
        args=(Ref(value.id),),
        kwargs=(("dtype", f"torch.{result.dtype}"),),
        results=(result.id,),
        result_shapes=(result.shape,),
        result_dtypes=(result.dtype,),
        phase=phase,
        path=path,
    )
