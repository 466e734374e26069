"""Modes that listen to ops or replace them: pausing them for a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch._subclasses.fake_tensor import unset_fake_temporarily

# A function mode does not see what torch's own Python functions call.
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

__all__ = ["TorchDispatchMode", "really", "unfaked", "without_modes"]


def unfaked() -> AbstractContextManager[Any]:
    """A context in which new tensors are real, even under a fake mode. Private: there is no public
    way for a library that reads its own values (Keras)."""
    return unset_fake_temporarily()


def without_modes() -> AbstractContextManager[Any]:
    """A context in which calls on real tensors are neither faked nor recorded. Private: there is no
    public way to pause all modes."""
    return _disable_current_modes()


def really(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `function` returns outside the mode of fake tensors. Private: the mode has no public
    way to pause."""
    with unfaked():
        return function(*args, **kwargs)
