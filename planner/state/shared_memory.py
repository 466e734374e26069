"""Refuses registered tensors that share memory: a plan holds every parameter and buffer in memory
of its own.

module, graph -> nothing, or a refusal by name. Tensors that no step changes may share memory; so
may tensors that do not overlap, such as the weights of a recurrent layer in one block.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from cost_models.errors import NotTraceable
from planner.graph.graph import Graph
from planner.state.state import State
from planner.torch_private.fake_tensors import memory_of
from planner.torch_private.modes import without_modes

__all__ = ["check_apart"]


def check_apart(state: State, graph: Graph, model: str) -> None:
    """Raises NotTraceable if the step of a graph changes one tensor of a model's state, and another
    one, registered or read by the step, overlaps it in memory."""
    names = {value.id: value.name for value in graph.values}
    read = set(names.values())
    named = {
        name: tensor
        for name, tensor in state.tensors.items()
        if name in read or name not in state.constants
    }
    changed = {p.name for p in graph.parameters} | {names[before] for before, _ in graph.updates}
    sharing: dict[int, list[str]] = {}
    for name, tensor in named.items():
        if tensor.numel():
            sharing.setdefault(memory_of(tensor), []).append(name)
    for group in sharing.values():
        for one, other in combinations(group, 2):
            moving = [name for name in (one, other) if name in changed]
            if moving and _overlap(named[one], named[other]):
                raise NotTraceable(
                    f"model {model!r}: {one!r} and {other!r} share memory, and a step changes "
                    f"{moving[0]!r} and so both, but a plan keeps them apart: register one "
                    "tensor under both names, or give one of them a .clone()"
                )


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two views of one memory have an element in common."""
    (first, last), (begin, end) = _span(one), _span(other)
    if last < begin or end < first or one.dtype != other.dtype:
        return one.dtype != other.dtype
    if one.is_contiguous() and other.is_contiguous():
        return True
    with without_modes():
        taken = torch.zeros(max(last, end) + 1, dtype=torch.bool)
        taken.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
        return bool(taken.as_strided(other.shape, other.stride(), other.storage_offset()).any())


def _span(tensor: Tensor) -> tuple[int, int]:
    """The offsets of the first and the last element in memory, in elements."""
    first = int(tensor.storage_offset())
    return first, first + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
