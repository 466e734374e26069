"""The tensors that a step reads beside its batch: parameters, buffers, and what the model or the
loss holds without registering it.

module, loss -> `State`. A loss that is a module counts as a part of the model: its parameters are
trained, its buffers are buffers. Whatever else is reachable is a constant, as it is to plain torch:
no optimizer is given it.
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
    """By name, each tensor once: parameters that are trained; buffers, frozen parameters among
    them; and constants."""

    trained: Mapping[str, nn.Parameter]
    buffers: Mapping[str, Tensor]
    constants: Mapping[str, Tensor]

    @property
    def kept(self) -> dict[str, Tensor]:
        """All that is not trained."""
        return {**self.buffers, **self.constants}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All."""
        return {**self.trained, **self.kept}


def state_of(module: nn.Module, loss: Any) -> State:
    """What the step of a module and a loss reads beside its batch. Names of a loss module's
    tensors begin with `loss.`; those of constants are what the model's author would write
    (`blocks.0.mask`, `loss.alpha`, `FILE.WEIGHTS`)."""
    trained, buffers = registered(module, loss)
    constants: dict[str, Tensor] = {}
    seen = {id(tensor) for tensor in (*trained.values(), *buffers.values())}
    for name, tensor, _ in _unregistered(module, loss, seen):
        while name in trained or name in buffers or name in constants:
            name += "_"
        constants[name] = tensor
    return State(trained=trained, buffers=buffers, constants=constants)


def registered(module: nn.Module, loss: Any) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """The parameters that are trained, and the buffers and frozen parameters, each once."""
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
    """The modules that are trained, each with what the names of its tensors begin with: the
    model, and the loss where it is one, or a method of one."""
    yield "", module
    part = loss if isinstance(loss, nn.Module) else getattr(loss, "__self__", None)
    if isinstance(part, nn.Module) and all(part is not child for child in module.modules()):
        yield "loss_function." if hasattr(module, "loss") else "loss.", part


def cast_constants(module: nn.Module, loss: Callable[..., Any], dtype: torch.dtype) -> None:
    """Widens the model's and the loss's own float32 constants to float64, where that is the
    dtype of parameters: no value changes, and where torch takes operands of one dtype alone, it
    takes them. What belongs to the process stays."""
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
