"""Ranks that fork from a process which has torch imported, instead of each importing it anew: 0.1 s
of processor time, not 1.9 s.

Everything else is the product's: torch's elastic agent starts and watches the ranks, each in a
process of its own. multiprocessing's forkserver keeps the process that they fork from; it runs
nothing, so it has no threads that a fork would lose. The tests of the launcher, and one test of
each caller of it, start ranks as the product does (the fixture `spawned_ranks`).
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
from torch.distributed.launcher.api import LaunchConfig

from runtime import launcher

__all__ = ["SPAWNED", "install"]

#: What the ranks of most tests import; what cannot be imported is left to them. The first trace and
#: the first optimizer of a process import torch's compiler, with sympy: half of all.
_IMPORTED = [
    "warm_ranks",
    "torch._dynamo",
    "runtime.training",
    "runtime.verify",
    "planner.search.search",
    "small_plans",
    "pytest",
]

#: The product's own: each rank is a new Python.
SPAWNED: Callable[[int, str], LaunchConfig] = launcher._config


def install() -> None:
    """Makes every launch of this process a warm one."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(_IMPORTED)
    launcher._config = _warm


def _warm(num_ranks: int, logs: str) -> LaunchConfig:
    _start()
    return replace(SPAWNED(num_ranks, logs), start_method="forkserver")


def _start() -> None:
    """The process to fork from gets the environment of the first launch: one thread, the hash
    seed of all ranks."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *([before] if before else [])]
    )
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


# Each rank draws other numbers than the rest until somebody sets a seed, as after a start of its
# own; Python's generator sees to it itself. What was imported before is no garbage.
os.register_at_fork(before=gc.freeze, after_in_child=np.random.seed)
