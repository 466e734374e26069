"""The ops of forward that need no stage of their own: each stage that reads their results runs them.

Ops that depend on no parameter (masks, positions, numbers of targets) are run from the batch, which
every rank has; views move no data; a parameter that is cast or viewed is so where it is read. To
send their results would cost more than to run them again. An approximation: an expensive op on the
batch alone runs on every stage that reads it, too.
"""

from __future__ import annotations

from planner.dims.roots import is_view
from planner.dims.subdims import SubDims
from planner.graph.graph import Graph, Node

__all__ = ["free_nodes"]


def free_nodes(graph: Graph, dims: SubDims) -> frozenset[int]:
    """The numbers of those nodes. Nodes that make new values of buffers are not among them: they
    run once."""
    of_parameters = {p.value for p in graph.parameters}
    bound: set[int] = set(of_parameters)
    stored = {new for _, new in graph.updates}
    outputs = {graph.loss, *(value for _, value in graph.reported)}
    only_parameter = set(of_parameters)
    found = set()
    for node in graph.nodes:
        reads = set(node.operands)
        writes = {r for r in node.results if r is not None}
        if node.phase != "forward":
            if reads and reads <= only_parameter and is_view(dims, node.index):
                found.add(node.index)
                only_parameter |= writes
            continue
        if writes & stored or writes & outputs:
            bound |= writes
        elif not reads & bound or is_view(dims, node.index):
            found.add(node.index)
            bound |= writes if reads & bound else set()
            only_parameter |= writes if reads and reads <= only_parameter else set()
        elif reads <= only_parameter and _is_cast(node):
            found.add(node.index)
            bound |= writes
            only_parameter |= writes
        else:
            bound |= writes
    return frozenset(found)


def _is_cast(node: Node) -> bool:
    return node.op == "aten._to_copy.default"
