"""Tensors with a shape and no memory: made, recognised, copied and read from files."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

# No public name for tensors with a shape and no memory but `meta`.
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily

__all__ = [
    "FakeTensorMode", "deep_copy_of_fake", "drop_constant", "fake_copies", "fake_mode_is_on",
    "has_values", "hung_attributes", "is_fake", "load_fake", "memory_of", "unlogged",
]  # fmt: skip


def fake_mode_is_on() -> bool:
    """Whether tensors made now have no memory."""
    return is_fake(torch.empty(()))


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether the tensor has a shape and no memory."""
    return isinstance(tensor, FakeTensor)


def deep_copy_of_fake(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """The result for `copy.deepcopy` of a fake tensor. torch's own copy includes the attributes of
    the Python object, its mode too, and tensors of two modes cannot be mixed."""
    if id(tensor) in memo:
        return cast(torch.Tensor, memo[id(tensor)])
    if not tensor.is_leaf:
        raise RuntimeError(
            "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol"
        )
    made = tensor.detach().clone(memory_format=torch.preserve_format)
    # A parameter's attributes are not copied; torch does not copy them either.
    if isinstance(tensor, torch.nn.Parameter):
        memo[id(tensor)] = torch.nn.Parameter(made, tensor.requires_grad)
        return cast(torch.Tensor, memo[id(tensor)])
    memo[id(tensor)] = made.requires_grad_(tensor.requires_grad)
    own = set(vars(made))
    for name, value in vars(tensor).items():
        if name not in own:
            setattr(made, name, copy.deepcopy(value, memo))
    return made


def load_fake(path: str | Path) -> Any:
    """The contents of a file of `torch.save`, with new fake tensors. torch itself makes them from
    storages on `meta`, into which no cast can put its result."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            fresh = (module, name) == ("torch._utils", "_rebuild_tensor_v2")
            return _fresh if fresh else super().find_class(module, name)

    return torch.load(
        path,
        weights_only=False,
        pickle_module=SimpleNamespace(Unpickler=Unpickler, __name__=__name__),
    )


def _fresh(
    storage: Any, _: int, size: Any, stride: Any, requires_grad: bool, hooks: Any, __: Any = None
) -> torch.Tensor:
    made = torch.empty_strided(size, stride, dtype=storage.dtype).requires_grad_(requires_grad)
    made._backward_hooks = hooks
    return made


def memory_of(tensor: torch.Tensor) -> int:
    """A number that is the same for all views of one memory. Private: fake tensors have no address
    to compare."""
    return int(tensor.untyped_storage()._cdata)


def drop_constant(tensor: torch.Tensor) -> None:
    """Makes a fake tensor forget the value that it may have been made from: a number read from it
    would for ever be the first step's. Private: there is no public way to make such a tensor
    data."""
    if isinstance(tensor, FakeTensor):
        tensor.constant = None


@contextmanager
def fake_copies(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """A context with fake copies of the tensors (those that are fake already stay), under their
    mode."""
    if all(map(is_fake, tensors)):
        yield list(tensors)
        return
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        yield [mode.from_tensor(t) for t in tensors]


@contextmanager
def unlogged() -> Iterator[None]:
    """A context in which fake tensors do not print tracebacks of their errors: the caller reports
    them in one line, or tries another way."""
    logger = logging.getLogger(FakeTensorMode.__module__)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def hung_attributes(tensor: torch.Tensor) -> dict[str, Any]:
    """The attributes that a user has set on a tensor, by name. Private: fake tensors keep their own
    among these."""
    return {name: value for name, value in vars(tensor).items() if name not in _names_of_fakes()}


@cache
def _names_of_fakes() -> frozenset[str]:
    with unset_fake_temporarily():
        fake = FakeTensorMode().from_tensor(torch.empty(0))
    return frozenset(vars(fake)) | {"_is_param"}


def has_values(tensor: torch.Tensor) -> bool:
    """Whether the tensor's elements can be read: not if it is fake, or on `meta`."""
    return not isinstance(tensor, FakeTensor) and tensor.device.type != "meta"
