"""A model built and traced as the one process of its training, wherever that happens.

A model may ask whether it is one of several processes (`if dist.is_initialized():
dist.all_reduce(...)`, `WORLD_SIZE`), and reduce by itself what a plan reduces. A plan is of the
whole step on the whole batch: there is one process, when planning and in every rank.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

__all__ = ["alone"]

#: What launchers tell a process of its place.
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
    """Within it `torch.distributed` has no process group, and the environment names no rank."""
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
