"""A module, an example batch and a loss, as the user gives them -> `Workload`, or their faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from cost_models.errors import BadValue
from planner.torch_private.hooks import is_compiled
from planner.workload.batches import flatten
from planner.workload.workload import Workload

__all__ = ["check_batch", "check_shapes", "tokens_of", "workload_of", "workload_of_parts"]


WANTED = "(model, batch, loss): a torch.nn.Module, a tuple of tensors with the target last (or a dict), and a function"


def workload_of_parts(spec: str, parts: object) -> Workload:
    wanted = WANTED
    if not isinstance(parts, tuple) or len(parts) != 3:
        got = (
            f"a tuple of {len(parts)}" if isinstance(parts, tuple) else f"a {type(parts).__name__}"
        )
        raise BadValue(f"{spec} returned {got}: return {wanted}, or a Workload")
    module, batch, loss = parts
    if not isinstance(module, torch.nn.Module):
        raise BadValue(f"{spec} returned a {type(module).__name__} as the model: return {wanted}")
    if not callable(loss):
        raise BadValue(f"{spec} returned a {type(loss).__name__} as the loss: return {wanted}")
    return workload_of(spec, module, batch, loss)


def workload_of(
    name: str, module: torch.nn.Module, batch: Any, loss: Callable[[Any, Any], Any], **more: Any
) -> Workload:
    """The workload of a module, an example batch (a tuple with the target last, or a dict; either
    may be nested) and a loss.

    Raises `BadValue` for a batch whose tensors do not share their dim 0.
    """
    if not isinstance(batch, tuple | list | Mapping):
        raise BadValue(f"{name} returned a {type(batch).__name__} as the batch: return {WANTED}")
    if len(batch) < 2 and not isinstance(batch, Mapping):
        raise BadValue(
            f"{name} returned a batch of {len(batch)}: return at least one input and, last, the target"
        )
    if is_compiled(loss):
        raise BadValue(
            f"{name}: the loss is compiled (torch.compile): give it uncompiled, since it becomes "
            "part of the plan's program"
        )
    plain = not isinstance(batch, Mapping) and not any(
        isinstance(item, tuple | list | Mapping) or item is None for item in batch
    )
    check_shapes(name, module)
    tensors, nest = (tuple(batch), None) if plain else flatten(batch)
    for number, item in enumerate(() if plain or isinstance(batch, Mapping) else batch):
        if not flatten(item)[0]:
            raise BadValue(
                f"{name} returned a {type(item).__name__} as number {number} of the batch: it "
                "holds no tensor"
            )
    check_batch(name, tensors)
    more.setdefault("tokens_per_sample", tokens_of(tensors))
    return Workload(name=name, module=module, batch=tensors, nest=nest, loss=loss, **more)


def check_shapes(name: str, module: torch.nn.Module) -> None:
    """Raises BadValue for a parameter or buffer of a lazy module that has seen no input yet."""
    _check_not_compiled(name, module)
    for what, tensor in (*module.named_parameters(), *module.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise BadValue(
                f"{name}: {what} has no shape yet, since its lazy module has seen no input: call "
                "the model once on an example batch where it is built, or give its layer the "
                "number of inputs"
            )


def _check_not_compiled(name: str, module: torch.nn.Module) -> None:
    """Raises BadValue for a module that torch.compile has wrapped, or compiles when it is
    called: it would be traced as compiled."""
    for path, part in module.named_modules():
        if is_compiled(part):
            what = f"its module {path!r}" if path else "the model"
            raise BadValue(
                f"{name}: {what} is compiled (torch.compile): give it uncompiled, since a plan "
                "is a program of its own"
            )


def tokens_of(batch: tuple[torch.Tensor, ...]) -> int:
    """Tokens in a sample: the first whole numbers of shape (batch, seq) are read as token ids."""
    first = batch[0]
    return first.shape[1] if first.dim() == 2 and not first.dtype.is_floating_point else 1


def check_batch(spec: str, batch: tuple[Any, ...]) -> None:
    if not batch:
        raise BadValue(
            f"{spec} returned a batch without tensors: return at least one input and, last, the target"
        )
    for index, tensor in enumerate(batch):
        if not isinstance(tensor, torch.Tensor) or tensor.dim() == 0:
            got = (
                "a tensor without dims"
                if isinstance(tensor, torch.Tensor)
                else f"a {type(tensor).__name__}"
            )
            raise BadValue(
                f"{spec} returned {got} as number {index} of the batch: each must be a tensor "
                "whose dim 0 is the batch"
            )
    sizes = [tensor.shape[0] for tensor in batch]
    if len(set(sizes)) != 1 or sizes[0] == 0:
        raise BadValue(
            f"{spec} returned a batch whose tensors have dim 0 of {sizes}: they must be equal and at least 1"
        )
