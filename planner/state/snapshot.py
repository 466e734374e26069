"""A snapshot of all that a step can reach: it lists what has changed since, and can restore it.

module, loss -> `Snapshot` -> `Change`s. Tensors are compared by identity: writes in place are in
the graph. Plain values are compared by value, containers by their contents.
"""

from __future__ import annotations

import re
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from planner.state.holder import Holder
from planner.state.reachable import PLAIN, reachable

__all__ = ["ABSENT", "Change", "Snapshot"]

#: The value of a missing key.
ABSENT = type("Absent", (), {"__repr__": lambda _: "nothing"})()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A value that has changed."""

    holder: Holder
    key: Any
    old: Any
    new: Any

    @property
    def name(self) -> str:
        """Its name, as the model's author knows it; for an added or removed item, its holder's."""
        name = self.holder.name(self.key)
        return re.sub(r"\[[^\[\]]*\]$", "", name) if self.resizes else name

    @property
    def resizes(self) -> bool:
        """Whether a container has gained or lost an item."""
        if isinstance(self.holder.thing, set):
            return len(self.old) != len(self.new)
        return isinstance(self.holder.thing, dict | list | deque) and (
            self.old is ABSENT or self.new is ABSENT
        )


class Snapshot:
    """The present contents of all that a step can reach."""

    def __init__(self, module: nn.Module, loss: Any) -> None:
        self._held = [(holder, holder.get()) for holder in reachable(module, loss)]

    def changes(self) -> list[Change]:
        """The changes since the snapshot."""
        return [change for holder, before in self._held for change in _changes(holder, before)]

    def restore(self) -> None:
        """Restores everything that can be restored."""
        for holder, before in self._held:
            if holder.put is not None and next(_changes(holder, before), None) is not None:
                holder.put(before)


def _changes(holder: Holder, before: dict[Any, Any]) -> Iterator[Change]:
    now = holder.get()
    for key in (*before, *(key for key in now if key not in before)):
        old, new = before.get(key, ABSENT), now.get(key, ABSENT)
        if not _same(old, new):
            yield Change(holder=holder, key=key, old=old, new=new)


def _same(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if type(old) is not type(new):
        return False
    if isinstance(old, tuple | list):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, float) and old != old:
        return bool(new != new)
    if isinstance(old, (*PLAIN, frozenset, types.MethodType)) or hasattr(old, "shown"):
        return bool(old == new)
    return False
