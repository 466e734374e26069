"""Records one training step as an FX graph: forward, loss, gradients, and what it leaves in
buffers.

`Workload` -> FX graph. Everything that listens to the step while it runs is put on here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cost_models.errors import NotTraceable
from planner.kernels import Canonical
from planner.kernels.functional import Functional
from planner.state.known import begin_step
from planner.state.outside import check_kept, check_leaves, check_set, set_by_loss, take_out_unread
from planner.torch_private.fake_tensors import memory_of
from planner.torch_private.recording import (
    joint_trace,
    label_new_nodes,
)
from planner.trace.decompose import decomposition_table
from planner.trace.gradients import check_sparse, check_untouched, gradients_of
from planner.trace.paths import paths_of
from planner.workload.workload import Workload

__all__ = ["plain_loss", "record_step"]


def plain_loss(workload: Workload) -> Tensor:
    """The loss, not recorded."""
    begin_step()
    module = workload.module
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with Canonical(torch.empty((), dtype=torch.int64)), workload.precision():
        inputs, named, target = workload.arguments(workload.batch)
        # The call resets the buffers that it sets.
        outputs = torch.func.functional_call(module, tensors, inputs, named)
        return workload.losses(outputs, target)[0]


def record_step(
    workload: Workload, lines: bool
) -> tuple[torch.fx.Graph, list[str], list[str], tuple[Any, ...], tuple[str, ...]]:
    """The recorded step, the names of its parameters and buffers, those of its losses, its
    arguments, and the names of the parameters that take no part in the loss (they have no
    gradient)."""
    begin_step()
    module, before = workload.module, workload.state()
    parameters, buffers = dict(before.trained), before.kept
    if not parameters:
        raise NotTraceable(
            f"model {workload.name!r} has no parameter that requires a gradient: there is nothing to train"
        )
    own = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}

    losses: list[str] = []
    unused: list[str] = []
    scales = [torch.empty((), dtype=torch.float32)] if workload.formats.scaled else []

    def step(
        weights: dict[str, Tensor], state: dict[str, Tensor], key: Tensor, *given: Tensor
    ) -> tuple[Tensor, ...]:
        scale, batch = given[: len(scales)], given[len(scales) :]
        with paths_of(module) as paths, _written_back(module, weights, state) as write:
            label_new_nodes({"phase": "forward", "path": ""})
            with Functional(), Canonical(key, module) as canonical, workload.precision():
                inputs, named, target = workload.arguments(batch)
                tensors = {
                    name: tensor for name, tensor in {**weights, **state}.items() if name in own
                }
                outputs = torch.func.functional_call(module, tensors, inputs, named)
                with set_by_loss(module, workload.loss, state) as found:
                    loss, several = workload.losses(outputs, target)
            check_sparse(canonical.sparse, weights, workload)
            for one in (*several.values(), loss):
                _check_loss(one, workload.name)
            scaled = loss * scale[0] if scale else loss
            paths.label_backward(scaled)
            check_leaves(paths.owner, before.constants, workload.name)
            with Functional():
                gradients = gradients_of(scaled, weights)
                write(found)
        losses[:] = several
        unused[:] = [name for name, gradient in gradients.items() if gradient is None]
        return (loss, *(g for g in gradients.values() if g is not None), *several.values())

    # Detached: the model may hold the batch too.
    batch = tuple(tensor.detach().requires_grad_(tensor.requires_grad) for tensor in workload.batch)
    arguments = (parameters, buffers, torch.empty((), dtype=torch.int64), *scales, *batch)
    graph = joint_trace(step, arguments, decomposition_table(), lines=lines)
    if len(unused) == len(parameters):
        raise NotTraceable(
            f"model {workload.name!r}: no parameter takes part in the loss: there is nothing to train"
        )
    if unused:
        check_untouched(unused, parameters, lambda: plain_loss(workload), workload.name)
    for name in take_out_unread(graph, [*parameters, *buffers], before.constants):
        del buffers[name]
    return (
        graph,
        [*parameters, *buffers],
        losses,
        (parameters, buffers, *arguments[2:]),
        tuple(unused),
    )


@contextmanager
def _written_back(
    module: torch.nn.Module, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Iterator[Callable[[Sequence[tuple[Tensor, Tensor]]], None]]:
    """A context that yields a function, which writes to the buffers the values that the module has
    set them to (`self.seen = 0.9 * self.seen`), as if they were changed in place, and to other
    buffers the values that it is given. It must be called at the step's end: backward reads a
    buffer's old value."""
    found: list[tuple[Tensor, Tensor]] = []

    def look(*_: Any) -> None:
        check_kept(module, {**weights, **state})
        for name, value in module.named_buffers(remove_duplicate=False):
            # A buffer that the module has just made is no state of the step.
            given = state.get(name, value)
            if value is not given:
                check_set(name, value, given)
                _check_memory(module, name, value)
                found.append((given, value))

    def write(more: Sequence[tuple[Tensor, Tensor]]) -> None:
        label_new_nodes({"phase": "forward", "path": ""})
        with torch.no_grad():
            for given, value in (*found, *more):
                given.copy_(value)

    handle = module.register_forward_hook(look)
    try:
        yield write
    finally:
        handle.remove()


def _check_memory(module: torch.nn.Module, name: str, value: Tensor) -> None:
    """Raises NotTraceable if a buffer is set to memory that it shares with another tensor."""
    for other, tensor in (
        *module.named_parameters(),
        *module.named_buffers(remove_duplicate=False),
    ):
        if other != name and memory_of(tensor) == memory_of(value):
            raise NotTraceable(
                f"buffer {name!r} is set to a tensor that shares memory with {other!r}, and would change with it: "
                "set it to a clone"
            )


def _check_loss(loss: Any, name: str) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = (
            f"a tensor of shape {tuple(loss.shape)}"
            if isinstance(loss, Tensor)
            else f"a {type(loss).__name__}"
        )
        raise NotTraceable(
            f"model {name!r}: the loss must be one scalar tensor, got {what}; reduce it with .mean() or .sum()"
        )
