"""Builds and traces a model as if in the only process of its training, in the planner and in every
rank.

A model may ask whether it is one of several processes (`if dist.is_initialized():
dist.all_reduce(...)`, `WORLD_SIZE`), and then reduce values itself that the plan reduces. A plan is
for the whole step on the whole batch, so the model must see one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

__all__ = ["alone"]

#: The environment variables by which launchers tell a process its rank.
_PLACE = (
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
)


@contextmanager
def alone() -> Iterator[None]:
    """A context in which `torch.distributed` has no process group and the environment names no
    rank."""
    group = dist.group.WORLD if dist.is_available() else None
    place = {name: os.environ.pop(name) for name in _PLACE if name in os.environ}
    if group is not None:
        dist.group.WORLD = None
    try:
        yield
    finally:
        if group is not None:
            dist.group.WORLD = group
        os.environ.update(place)
