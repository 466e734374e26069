"""Checkpoints: blocks that torch computes again in backward, run once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint

__all__ = ["checkpoints_allowed", "without_recompute"]


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
    `block()`: backward keeps what it would have computed again.

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


def _once(block: Callable[[], AbstractContextManager[Any]], *_: Any, **__: Any) -> Iterator[None]:
    """What `checkpoint` does before its function and after it."""
    with block():
        yield


class _Reentrant:
    """Replaces the autograd function of reentrant checkpoints, of which only `apply` is called."""

    def __init__(self, block: Callable[[], AbstractContextManager[Any]]) -> None:
        self.block = block

    def apply(self, function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        """The result of the function on its arguments."""
        wanted = any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
        with self.block(), torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
            return function(*args)
