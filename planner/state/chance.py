"""The random generators that a model's code may draw from: seeded the same wherever it is built,
and watched while its step is traced.

Draws from torch are made again in every step (`planner.kernels`). Draws from Python's `random` or
from numpy are made only once, when the step is traced, so they must not matter.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch

__all__ = ["drawn_from", "seed_all", "seeded", "state"]

#: numpy takes seeds below this.
_NUMPY_SEEDS = 2**32


def seed_all(seed: int) -> None:
    """Seeds Python's, numpy's and torch's generators, so that whatever is built next is the same in
    every process."""
    random.seed(seed)
    np.random.seed(seed % _NUMPY_SEEDS)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context under `seed_all`; afterwards the caller's generators continue as if nothing had
    been drawn."""
    before = (random.getstate(), np.random.get_state())
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % _NUMPY_SEEDS)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def state() -> tuple[Any, ...]:
    """The states of Python's and numpy's generators."""
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, np.asarray(keys).tobytes(), *rest


def drawn_from(step: Callable[[], object], is_own: Callable[[str], bool]) -> str:
    """`FILE:LINE` of the first line, in files that `is_own` accepts, that draws from Python's or
    numpy's generator while `step` runs; empty if there is none. Slow: it checks after every
    line."""
    begun, place, found = state(), "", ""

    def line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal place, found
        if not is_own(frame.f_code.co_filename):
            return None
        if not found and state() != begun:
            found = place
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        return line

    before = sys.gettrace()
    sys.settrace(line)
    try:
        step()
    finally:
        sys.settrace(before)
    return found or (place if state() != begun else "")
