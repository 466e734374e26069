"""Tensors that a recorded step reads or writes and that are not the model's own: buffers of the
loss, and constants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cost_models.errors import NotTraceable
from planner.state.state import registered, trained_parts

__all__ = ["check_kept", "check_leaves", "check_set", "set_by_loss", "take_out_unread"]


@contextmanager
def set_by_loss(
    module: nn.Module, loss: Callable[..., Any], state: Mapping[str, Tensor]
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """A context that yields a list of (buffer, new value), filled at its end with the buffers that
    the loss (if it is a module) has replaced; the loss then gets its old buffers back."""
    parts = [part for prefix, part in trained_parts(module, loss) if prefix]
    before = [(child, dict(child._buffers)) for part in parts for child in part.modules()]
    found: list[tuple[Tensor, Tensor]] = []
    yield found
    for name, value in registered(module, loss)[1].items() if parts else ():
        given = state.get(name, value)
        if value is not given:
            check_set(name, value, given)
            found.append((given, value))
    for child, kept in before:
        child._buffers.update(kept)


def check_set(name: str, value: Tensor, given: Tensor) -> None:
    """Raises NotTraceable unless a buffer can take the value that it is set to."""
    if value.requires_grad or (value.shape, value.dtype) != (given.shape, given.dtype):
        raise NotTraceable(
            f"buffer {name!r} is set to a tensor with a gradient, or of another shape or dtype: "
            "set it to a detached tensor of its own shape and dtype"
        )


def check_kept(module: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Raises NotTraceable for a parameter that forward has replaced by another tensor: an optimizer
    would still update the old one, and the next step would compute with the new one."""
    for name, parameter in module.named_parameters():
        if parameter is not given.get(name, parameter):
            raise NotTraceable(
                f"parameter {name!r} is set to another tensor in forward, but an optimizer would "
                "go on updating the first: compute with the new tensor under a name of its own, "
                "or make it a buffer"
            )


def check_leaves(nodes: Iterable[Any], constants: Mapping[str, Tensor], model: str) -> None:
    """Raises NotTraceable for a constant that gets a gradient, among the autograd nodes behind the
    loss: no optimizer would get it, which is hardly intended."""
    names = {id(tensor): name for name, tensor in constants.items() if tensor.requires_grad}
    for node in nodes:
        name = names.get(id(getattr(node, "variable", None)))
        if name is not None:
            raise NotTraceable(
                f"model {model!r}: the loss has a gradient of {name!r}, which is not a "
                "registered parameter of the model (an optimizer of "
                "model.parameters() would not train it): register it (nn.Parameter as an attribute, nn.ModuleList or "
                "nn.ParameterList for a list, the loss itself as a module), or freeze it with requires_grad_(False)"
            )


def take_out_unread(
    graph: torch.fx.Graph, names: list[str], constants: Mapping[str, Tensor]
) -> list[str]:
    """Removes from a graph's arguments the constants that it does not read, and returns their
    names. A model can reach many constants."""
    graph.eliminate_dead_code()
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    unread = [
        (name, node)
        for name, node in zip(names, placeholders, strict=False)
        if name in constants and not node.users
    ]
    for _, node in unread:
        graph.erase_node(node)
    return [name for name, _ in unread]
