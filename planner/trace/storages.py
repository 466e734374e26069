"""Which nodes of a recorded graph share memory, and whether a write to one is seen elsewhere."""

from __future__ import annotations

import operator
from typing import Any

import torch

from planner.kernels.functional import is_view_in_place
from planner.torch_private.recording import OpOverload

__all__ = ["Storages"]

aten = torch.ops.aten


class Storages:
    """For every node of a recorded graph, the node that owns its memory."""

    def __init__(self, fx_graph: torch.fx.Graph) -> None:
        self.roots = _roots(fx_graph)

    def harmless(self, node: torch.fx.Node) -> bool:
        """Whether the write in place is not visible elsewhere: no earlier view of the tensor is
        read after it."""
        changed: Any = node.args[0]
        if is_view_in_place(node.target):  # type: ignore[arg-type]
            return bool(changed.op != "placeholder")
        if node.target is aten.resize_.default:  # makes an empty tensor, which is written next
            return self.roots[node].op != "placeholder" and changed.meta["val"].numel() == 0
        return (
            node.target is aten.copy_.default
            and self.roots[node].op != "placeholder"
            and not self.seen_after(node)
        )

    def seen_after(self, node: torch.fx.Node) -> list[torch.fx.Node]:
        """Earlier nodes that share memory with the tensor written to and are read after the op."""
        root = self.roots[node]
        return [
            n
            for n, r in self.roots.items()
            if r is root and n < node and any(user > node for user in n.users)
        ]


def _roots(fx_graph: torch.fx.Graph) -> dict[torch.fx.Node, torch.fx.Node]:
    """For every node, the node whose memory its result is a view of, or is written to; itself if it
    has memory of its own."""
    roots: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in fx_graph.nodes:
        shares = node.target is operator.getitem
        if isinstance(node.target, OpOverload):
            shares = any(r.alias_info is not None for r in node.target._schema.returns)
        first = node.args[0] if node.args else None
        roots[node] = roots[first] if shares and isinstance(first, torch.fx.Node) else node
    return roots
