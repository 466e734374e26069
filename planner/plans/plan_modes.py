"""The modes of a plan's ops in its file: for each mode but `kept`, the graph's nodes that have it, as
ranges.

Modes by node <-> `{"again": "3-17,20"}`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from planner.plans.plan_schema import Damaged, check, part
from planner.strategy.strategies import KEPT, MODES

__all__ = ["read_modes", "show_modes"]

#: The modes that a file lists.
_LISTED = tuple(mode for mode in MODES if mode != KEPT)

#: No graph has as many nodes: a damaged range must not fill the memory.
_MOST = 10**7


def show_modes(modes: Mapping[int, str]) -> dict[str, str]:
    """The nodes of each mode that some node has."""
    return {
        mode: _ranges(sorted(node for node, other in modes.items() if other == mode))
        for mode in _LISTED
        if mode in modes.values()
    }


def read_modes(body: Mapping[str, Any]) -> dict[int, str]:
    """The inverse of `show_modes`; no modes if the file has none. Raises Damaged."""
    if "modes" not in body:
        return {}
    shown = part(body, "modes", dict[str, str])
    known = set(shown) <= set(_LISTED)
    check(known, "modes", sorted(shown), f"only ops that are not {KEPT} are listed")
    pairs = [(node, mode) for mode, text in shown.items() for node in _nodes(text)]
    modes = dict(sorted(pairs))
    check(len(modes) == len(pairs), "modes", shown, "an op has one mode")
    return modes


def _ranges(numbers: Iterable[int]) -> str:
    """`3, 4, 5, 9` as `3-5,9`."""
    runs = []
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(runs)


def _nodes(text: str) -> list[int]:
    found: list[int] = []
    for run in text.split(","):
        if not re.fullmatch(r"[0-9]{1,8}(-[0-9]{1,8})?", run):
            raise Damaged(f"modes: {run!r} is no range of ops")
        first, _, last = run.partition("-")
        end = int(last or first) + 1
        check(int(first) < end <= _MOST, "modes", run, "a range of ops, the first one first")
        found += range(int(first), end)
    return found
