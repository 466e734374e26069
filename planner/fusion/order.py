"""The order in which a graph's nodes are looked at for fusing: each as early as it can run.

Backward of a gate multiplies twice and then differentiates; between these stand products that do
not need the last. Early, all three can be one pass over memory.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from planner.dims.subdims import SubDims
from planner.fusion.fusible import looks
from planner.graph.graph import Graph

__all__ = ["early_order"]


def early_order(
    graph: Graph, dims: SubDims, fusible: frozenset[int], homes: Sequence[Hashable]
) -> list[int]:
    """The indices of the nodes in an order in which every value is written before it is read. Nodes
    that are not fusible keep their order. A fusible node, or a view, stands after the last of them
    that it depends on; it moves only over nodes of its own home: `homes` has every node's."""
    anchors: dict[int, int] = {}
    first = _runs(graph, homes)
    for node in graph.nodes:
        if node.index in fusible or looks(dims, node.index):
            writers = [graph.values[value].writer for value in node.operands]
            needed = [anchors[w] for w in writers if w is not None]
            anchors[node.index] = max([*needed, first[node.index]])
        else:
            anchors[node.index] = node.index
    return sorted(anchors, key=lambda index: (anchors[index], index))


def _runs(graph: Graph, homes: Sequence[Hashable]) -> list[int]:
    """For every node, the first of the run of nodes of its home that it is in."""
    out: list[int] = []
    for node in graph.nodes:
        before = graph.nodes[node.index - 1] if node.index else None
        same = before is not None and homes[before.index] == homes[node.index]
        out.append(out[-1] if same else node.index)
    return out
