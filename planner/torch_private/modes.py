"""What listens to ops, or replaces them: for a time, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch._subclasses.fake_tensor import unset_fake_temporarily

# A function mode does not see what torch's own Python functions call.
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

__all__ = ["TorchDispatchMode", "really", "unfaked", "without_modes"]


def unfaked() -> AbstractContextManager[Any]:
    """Within it tensors are real, under fake tensors too. Private: no public way for a library
    that reads its own values (Keras)."""
    return unset_fake_temporarily()


def without_modes() -> AbstractContextManager[Any]:
    """Within it calls on real tensors are neither faked nor recorded. Private: no public way to
    pause all that listens to ops."""
    return _disable_current_modes()


def really(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `function` returns outside the mode of fake tensors. Private: the mode has no public
    way to pause."""
    with unfaked():
        return function(*args, **kwargs)
