"""Checkpoints: blocks that torch computes again in backward, run once while they are traced. What is
inside of them is labelled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
import torch.utils.checkpoint

__all__ = ["checkpoints_allowed", "running_in", "without_recompute"]

_RUNNING_IN: ContextVar[str] = ContextVar("checkpoint", default="")


def running_in() -> str:
    """The checkpoint inside of which the model runs: `recompute` if all of it is to be computed
    again in backward, `selective` if its `context_fn` decides, empty if there is none."""
    return _RUNNING_IN.get()


@contextmanager
def checkpoints_allowed() -> Iterator[None]:
    """A context in which a reentrant checkpoint's backward also runs under `torch.autograd.grad`.
    torch refuses that, since gradients left on parameters would be lost: the caller adds those.
    Private: only the engine says whether it may run."""
    asked = torch.autograd._is_checkpoint_valid
    torch.autograd._is_checkpoint_valid = lambda: True
    try:
        yield
    finally:
        torch.autograd._is_checkpoint_valid = asked


@contextmanager
def without_recompute(block: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """A context in which `torch.utils.checkpoint` runs its function once, plainly, in the context
    `block()`. Nodes that are traced inside carry the label `checkpoint`, with the value of
    `running_in`.

    Reached by whatever name a model has imported it, since it looks these two up when called.
    Private: no public way; under fake tensors its own bookkeeping fails, and a traced graph holds
    either every activation or none. Where no tensor argument of the reentrant kind asks for a
    gradient, torch gives none to what is inside, and so does this.
    """
    module = torch.utils.checkpoint
    kept = module._checkpoint_without_reentrant_generator, module.CheckpointFunction
    ours = partial(_once, block), _Reentrant(block)
    module._checkpoint_without_reentrant_generator, module.CheckpointFunction = ours  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        module._checkpoint_without_reentrant_generator, module.CheckpointFunction = kept  # type: ignore[misc]


def _once(
    block: Callable[[], AbstractContextManager[Any]],
    function: Callable[..., Any],
    preserve: bool = True,
    contexts: Callable[..., Any] = torch.utils.checkpoint.noop_context_fn,
    *_: Any,
    **__: Any,
) -> Iterator[None]:
    """What `checkpoint` does before its function and after it."""
    plain = contexts is torch.utils.checkpoint.noop_context_fn
    with block(), _labelled("recompute" if plain else "selective"):
        yield


@contextmanager
def _labelled(how: str) -> Iterator[None]:
    """A context in which traced nodes are labelled as being inside of a checkpoint."""
    token, labels = _RUNNING_IN.set(how), fx_traceback.current_meta.get("custom", {})
    fx_traceback.current_meta["custom"] = {**labels, "checkpoint": how}
    try:
        yield
    finally:
        _RUNNING_IN.reset(token)
        fx_traceback.current_meta["custom"] = labels


class _Reentrant:
    """Replaces the autograd function of reentrant checkpoints, of which only `apply` is called."""

    def __init__(self, block: Callable[[], AbstractContextManager[Any]]) -> None:
        self.block = block

    def apply(self, function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        """The result of the function on its arguments."""
        wanted = any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
        enabled = wanted and torch.is_grad_enabled()
        with self.block(), _labelled("recompute"), torch.set_grad_enabled(enabled):
            return function(*args)
