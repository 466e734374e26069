"""Hooks of tensors and modules, and attributes that are made with hooks."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils import parametrize

__all__ = [
    "accumulate_hooks", "global_module_hooks", "gradient_hooks", "is_compiled",
    "parametrized_again", "post_accumulate_hooks",
]  # fmt: skip


def gradient_hooks(tensor: torch.Tensor) -> list[Callable[..., Any]]:
    """The hooks of `register_hook`, in their order. Private: torch has no way to ask for them."""
    return list((tensor._backward_hooks or {}).values())


def post_accumulate_hooks(tensor: torch.Tensor) -> list[Callable[..., Any]]:
    """The hooks of `register_post_accumulate_grad_hook`. Private: torch has no way to ask for
    them."""
    return list((getattr(tensor, "_post_accumulate_grad_hooks", None) or {}).values())


class _ReadsAll(torch.autograd.Function):
    """A node that leads to the nodes of all its inputs: one op, instead of one per tensor to get
    its node."""

    @staticmethod
    def forward(ctx: Any, *_: Any) -> torch.Tensor:
        return torch.empty(())


def accumulate_hooks(parameters: Sequence[torch.Tensor]) -> list[list[Callable[..., Any]]]:
    """For each parameter, the hooks on the node that accumulates its `grad`. Private: only the
    garbage collector knows what a node refers to."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    nodes = dict(zip(map(id, trained), _nodes_of(trained), strict=True))
    return [_hooks_on(nodes[id(one)], one) if id(one) in nodes else [] for one in parameters]


def _nodes_of(trained: Sequence[torch.Tensor]) -> list[Any]:
    """The nodes alone: a node that another still leads to does not tell the collector what it
    holds."""
    if not trained:
        return []
    with torch.enable_grad():
        return [node for node, _ in _ReadsAll.apply(*trained).grad_fn.next_functions]  # type: ignore[no-untyped-call]


def _hooks_on(node: Any, parameter: torch.Tensor) -> list[Callable[..., Any]]:
    hooks = [
        held
        for held in gc.get_referents(node)
        if isinstance(held, dict) and held is not parameter._backward_hooks
    ]
    return [hook for held in hooks for hook in held.values()]


def parametrized_again(module: torch.nn.Module, names: Sequence[str]) -> None:
    """Makes a module that has no state yet one whose tensors of these names are parametrized.
    Private: torch makes the class and its properties only together with a new parametrization,
    and refuses to write a module that has them."""
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)


def global_module_hooks() -> list[Callable[..., Any]]:
    """The hooks that run for every module of the process. Private: torch has no way to ask for
    them."""
    held = vars(torch.nn.modules.module)
    names = ("forward", "forward_pre", "backward", "backward_pre")
    return [hook for name in names for hook in held[f"_global_{name}_hooks"].values()]


def is_compiled(called: object) -> bool:
    """Whether calling a module or function runs compiled code: `torch.compile(called)`,
    `module.compile()`."""
    # Not imported for this, which takes a second: it is loaded if it was used.
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    wrapped = dynamo is not None and isinstance(called, dynamo.OptimizedModule)
    return wrapped or any(
        getattr(called, name, None) is not None
        for name in ("_compiled_call_impl", "_torchdynamo_orig_callable")
    )
