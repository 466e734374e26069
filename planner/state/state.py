"""The tensors that a step reads beside its batch: parameters, buffers, and tensors that the model
or the loss holds without registering them.

module, loss -> `State`. A loss that is a module counts as a part of the model: its parameters are
trained, its buffers are buffers. Any other reachable tensor is a constant, as in plain torch: no
optimizer gets it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from planner.state.reachable import reachable
from planner.torch_private.fake_tensors import is_fake
from planner.torch_private.modes import without_modes

__all__ = ["State", "cast_constants", "trained_parts", "registered", "state_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Tensors by name, each once: trained parameters; buffers, frozen parameters included; and
    constants."""

    trained: Mapping[str, nn.Parameter]
    buffers: Mapping[str, Tensor]
    constants: Mapping[str, Tensor]

    @property
    def kept(self) -> dict[str, Tensor]:
        """All tensors that are not trained."""
        return {**self.buffers, **self.constants}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors."""
        return {**self.trained, **self.kept}


def state_of(module: nn.Module, loss: Any) -> State:
    """The state that the step of a module and a loss reads. Names of a loss module's tensors begin
    with `loss.`; constants have the names that the model's author would write (`blocks.0.mask`,
    `loss.alpha`, `FILE.WEIGHTS`)."""
    trained, buffers = registered(module, loss)
    constants: dict[str, Tensor] = {}
    seen = {id(tensor) for tensor in (*trained.values(), *buffers.values())}
    for name, tensor, _ in _unregistered(module, loss, seen):
        while name in trained or name in buffers or name in constants:
            name += "_"
        constants[name] = tensor
    return State(trained=trained, buffers=buffers, constants=constants)


def registered(module: nn.Module, loss: Any) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """The trained parameters, and the buffers and frozen parameters; each tensor once."""
    trained: dict[str, nn.Parameter] = {}
    frozen: dict[str, nn.Parameter] = {}
    buffers: dict[str, Tensor] = {}
    seen: set[int] = set()
    for prefix, part in trained_parts(module, loss):
        parameters, others = dict(part.named_parameters()), dict(part.named_buffers())
        for name, parameter in parameters.items():
            if id(parameter) not in seen:
                (trained if parameter.requires_grad else frozen)[prefix + name] = parameter
        buffers |= {
            prefix + name: buffer for name, buffer in others.items() if id(buffer) not in seen
        }
        seen |= {id(tensor) for tensor in (*parameters.values(), *others.values())}
    return trained, buffers | frozen


def trained_parts(module: nn.Module, loss: Any) -> Iterator[tuple[str, nn.Module]]:
    """The trained modules, each with the prefix of its tensors' names: the model, and the loss if
    it is a module, or a method of one."""
    yield "", module
    part = loss if isinstance(loss, nn.Module) else getattr(loss, "__self__", None)
    if isinstance(part, nn.Module) and all(part is not child for child in module.modules()):
        yield "loss_function." if hasattr(module, "loss") else "loss.", part


def cast_constants(module: nn.Module, loss: Callable[..., Any], dtype: torch.dtype) -> None:
    """Widens the model's and the loss's own float32 constants to float64 if parameters have that
    dtype. No value changes, and ops that need operands of one dtype accept them. Constants that
    belong to the process stay as they are."""
    if dtype != torch.float64:
        return
    own = {
        id(tensor)
        for _, part in trained_parts(module, loss)
        for tensor in (*part.parameters(), *part.buffers())
    }
    for _, tensor, shared in _unregistered(module, loss, own):
        if tensor.dtype == torch.float32 and not shared:
            with nullcontext() if is_fake(tensor) else without_modes():
                tensor.data = tensor.data.to(dtype)


def _unregistered(
    module: nn.Module, loss: Any, registered: set[int]
) -> Iterator[tuple[str, Tensor, bool]]:
    """The name of each reachable tensor that is not among the `registered`, by id, and whether
    it is the process's."""
    seen = set(registered)
    for holder in reachable(module, loss):
        for key, value in holder.get().items():
            if (
                isinstance(value, Tensor)
                and id(value) not in seen
                and value.layout is torch.strided
            ):
                seen.add(id(value))
                yield holder.name(key), value, holder.shared
