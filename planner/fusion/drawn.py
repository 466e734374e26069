"""Dropout in two ops: the hashes of rows and columns, which need the key, and the draws, which are a
member like any other.

A kernel of its own draws in chunks, eight passes over memory; in a fused op the draws stay in
registers. The mask is the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.graph.graph import Graph, Node, Ref, Value

__all__ = ["hashed_dropout"]


def hashed_dropout(graph: Graph) -> Graph:
    """The graph with every dropout as two ops, where the second alone reads the tensor. Their
    values come after all others."""
    if not any(map(_is_dropout, graph.nodes)):
        return graph
    values = list(graph.values)
    nodes = list(_nodes(graph, values))
    places = {value: index for index, node in enumerate(nodes) for value in node.results}
    return replace(
        graph,
        nodes=tuple(replace(node, index=index) for index, node in enumerate(nodes)),
        values=tuple(
            value if value.writer is None else replace(value, writer=places[value.id])
            for value in values
        ),
    )


def _is_dropout(node: Node) -> bool:
    return node.op == "shardwright.dropout" and bool(node.result_shapes[0])


def _nodes(graph: Graph, values: list[Value]) -> Iterator[Node]:
    """The nodes in order; the values of hashes are added to `values`."""
    for node in graph.nodes:
        if not _is_dropout(node):
            yield node
            continue
        x, key, p, number = node.args
        shape = node.result_shapes[0]
        rows, columns = len(values), len(values) + 1
        for value, part in ((rows, shape[:-1]), (columns, shape[-1:])):
            values.append(
                Value(
                    id=value,
                    shape=part,
                    dtype="int32",
                    kind="activation",
                    name=f"hashes_{value}",
                    writer=node.index,
                )
            )
        yield replace(
            node,
            op="shardwright.drop_hashes",
            args=(key, shape, number),
            results=(rows, columns),
            result_shapes=(shape[:-1], shape[-1:]),
            result_dtypes=("int32", "int32"),
        )
        yield replace(
            node, op="shardwright.drop_by", args=(x, Ref(rows), Ref(columns), p), kwargs=()
        )
