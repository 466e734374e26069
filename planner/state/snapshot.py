"""What a step can reach, kept as it stands: what has changed since, and a way back.

module, loss -> `Snapshot` -> `Change`s. Tensors are compared by identity: what is written in place
is in the graph. Plain values are compared by value, containers by what they hold.
"""

from __future__ import annotations

import re
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from planner.state.reachable import PLAIN, Holder, reachable

__all__ = ["ABSENT", "Change", "Snapshot"]

#: What a key that is not there holds.
ABSENT = type("Absent", (), {"__repr__": lambda _: "nothing"})()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A value that is not what it was."""

    holder: Holder
    key: Any
    old: Any
    new: Any

    @property
    def name(self) -> str:
        """What the model's author calls it; of an item that has come or gone, what holds it."""
        name = self.holder.name(self.key)
        return re.sub(r"\[[^\[\]]*\]$", "", name) if self.resizes else name

    @property
    def resizes(self) -> bool:
        """Whether a container holds more than it did, or less."""
        if isinstance(self.holder.thing, set):
            return len(self.old) != len(self.new)
        return isinstance(self.holder.thing, dict | list | deque) and (
            self.old is ABSENT or self.new is ABSENT
        )


class Snapshot:
    """All that a step can reach, as it stands now."""

    def __init__(self, module: nn.Module, loss: Any) -> None:
        self._held = [(holder, holder.get()) for holder in reachable(module, loss)]

    def changes(self) -> list[Change]:
        """What is not as it was."""
        return [change for holder, before in self._held for change in _changes(holder, before)]

    def restore(self) -> None:
        """Puts all back that can be."""
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
