"""Additions of a bias to a product: lowering may join the two in one kernel."""

from __future__ import annotations

from planner.graph.graph import Graph, Node

__all__ = ["adds_a_bias"]


def adds_a_bias(graph: Graph, node: Node) -> bool:
    """Whether the node adds a tensor of one dim, or of fewer dims, to a product or a
    convolution."""
    if node.op != "aten.add.Tensor" or len(node.operands) != 2:
        return False
    product, bias = (graph.values[value] for value in node.operands)
    if product.writer is None or graph.nodes[product.writer].op not in (
        "aten.mm.default",
        "aten.convolution.default",
    ):
        return False
    viewed = None if bias.writer is None else graph.nodes[bias.writer].operands
    return len(bias.shape) < len(product.shape) or bool(
        viewed and len(graph.values[viewed[0]].shape) == 1
    )
