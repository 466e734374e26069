"""A digest by which two recorded steps are compared: nodes that depend on no data are replaced by
their values (constant folding).

FX graph -> digest. A step that caches a table of positions computes it once and reads it the next
time; the digest is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from planner.torch_private.fake_tensors import is_fake
from planner.torch_private.modes import without_modes
from planner.torch_private.trees import tree_leaves, tree_map

__all__ = ["digest"]

#: Larger tensors are not computed, in elements.
_LARGEST = 1 << 20


def digest(
    graph: torch.fx.Graph,
    values: Mapping[str, Tensor | None],
    names: list[str],
    shown: Mapping[str, str],
    known: Callable[[Tensor], Tensor | None],
) -> str:
    """The digest of a graph whose first arguments have `names`, printed as `shown`. `values` has
    the values of arguments that no step changes, if known; `known` returns those of fake tensors
    that the graph itself holds."""
    graph.eliminate_dead_code()
    folder = _Folder(graph, known)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for number, node in enumerate(placeholders):
        name = names[number] if number < len(names) else f"input {number - len(names)}"
        folder.given(node, shown.get(name, name), values.get(name))
    for node in graph.nodes:
        if node.op == "get_attr":
            folder.held(node)
        elif node.op == "call_function":
            folder.call(node)
        elif node.op == "output":
            folder.line(str(tree_map(folder.shown, node.args)))
    return folder.hash.hexdigest()


class _Folder:
    def __init__(self, graph: torch.fx.Graph, known: Callable[[Tensor], Tensor | None]) -> None:
        self.graph, self.known = graph, known
        self.worked_out: dict[torch.fx.Node, Any] = {}
        self.names: dict[torch.fx.Node, str] = {}
        self.hash = hashlib.sha256()

    def line(self, text: str) -> None:
        self.hash.update(text.encode() + b"\n")

    def given(self, node: torch.fx.Node, name: str, value: Tensor | None) -> None:
        if value is None:
            self.names[node] = name
        else:
            with without_modes():
                self.worked_out[node] = value.clone()

    def held(self, node: torch.fx.Node) -> None:
        tensor = getattr(self.graph.owning_module, str(node.target))
        value = self.known(tensor) if isinstance(tensor, Tensor) and is_fake(tensor) else tensor
        self.given(node, f"held {node.target}", value)

    def call(self, node: torch.fx.Node) -> None:
        if all(arg in self.worked_out for arg in node.all_input_nodes) and self._work_out(node):
            return
        self.names[node] = str(len(self.names))
        args = tree_map(self.shown, (node.args, dict(node.kwargs)))
        self.line(f"{self.names[node]} = {node.target} {args}")

    def _work_out(self, node: torch.fx.Node) -> bool:
        """Computes the call on values, if all are known; returns whether they were."""
        tags = getattr(node.target, "tags", ())
        sizes = [t.numel() for t in tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
        random = torch.Tag.nondeterministic_seeded in tags or str(node.target).startswith(
            "shardwright."
        )
        if random or max(sizes, default=0) > _LARGEST:
            return False
        args, kwargs = tree_map(self._value, (tuple(node.args), dict(node.kwargs)))
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        try:
            with without_modes(), torch.no_grad():
                self.worked_out[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, TypeError, NotImplementedError):
            # A call that works only while recording is compared as text.
            return False
        return True

    def _value(self, x: Any) -> Any:
        return self.worked_out[x] if isinstance(x, torch.fx.Node) else x

    def shown(self, x: Any) -> str:
        """An argument as text; for a computed one, its values."""
        if not isinstance(x, torch.fx.Node):
            return repr(x)
        if x not in self.worked_out:
            return self.names[x]
        with without_modes():
            value = self.worked_out[x]
            return str(
                [
                    (str(t.dtype), tuple(t.shape), _bytes(t))
                    for t in tree_leaves(value)
                    if isinstance(t, Tensor)
                ]
            )


def _bytes(tensor: Tensor) -> str:
    flat = (
        tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        if tensor.dim()
        else tensor.detach().reshape(1).view(torch.uint8)
    )
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()
