"""The nodes and values of a `Graph` that is being built, numbered in the order of addition."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from planner.graph.graph import Node, Value, result_name

__all__ = ["Numbered"]


class Numbered:
    """The values and nodes of a graph so far."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.counts: Counter[str] = Counter()

    def value(self, tensor: Tensor, kind: str, name: str, writer: int | None = None) -> int:
        """Adds a value; returns its id."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        self.values.append(
            Value(
                id=len(self.values),
                shape=tuple(tensor.shape),
                dtype=dtype,
                kind=kind,
                name=name,
                writer=writer,
            )
        )
        return len(self.values) - 1

    def node(
        self, node: torch.fx.Node, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[int | None, ...]:
        """Adds the node of a recorded op; returns the ids of results, None for one not read."""
        result = node.meta["val"]
        many = isinstance(result, (tuple, list))
        name = result_name(op, self.counts)
        tensors = list(result) if many else [result]
        read = {n.args[1] for n in node.users if n.target is operator.getitem} if many else {0}
        labels = node.meta.get("custom", {})
        index = len(self.nodes)
        ids = tuple(
            self.value(t, "activation", name, index)
            if i in read and isinstance(t, Tensor)
            else None
            for i, t in enumerate(tensors)
        )
        present = [t if isinstance(t, Tensor) else torch.empty(0) for t in tensors]
        self.nodes.append(
            Node(
                index=index,
                op=op,
                args=args,
                kwargs=tuple(sorted(kwargs.items())),
                results=ids,
                result_shapes=tuple(tuple(t.shape) for t in present),
                result_dtypes=tuple(str(t.dtype).removeprefix("torch.") for t in present),
                phase=labels.get("phase", "forward"),
                path=labels.get("path", ""),
                checkpoint=labels.get("checkpoint", ""),
            )
        )
        return ids
