"""A place that keeps values by key, and how values are put back into it."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "Contents", "Holder", "argument_name", "attribute_name", "item_name", "joined_name",
    "put_nothing", "refill", "refill_array", "refill_cell", "refill_list", "refill_set",
    "replace_items",
]  # fmt: skip


Contents = dict[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A place that keeps values by key. `shared` ones are the process's (globals, attributes of a
    class), the others the model's.

    `get` returns its present contents; `put` restores them, if it can (an iterator cannot go back);
    `name` is the name of a key's value, as the model's author knows it.
    """

    thing: Any
    get: Callable[[], Contents]
    put: Callable[[Contents], None] | None
    name: Callable[[Any], str]
    shared: bool = False
    chance: bool = False  # a generator of random numbers


def put_nothing(_: Contents) -> None:
    """A `put` that does nothing."""


def replace_items(kept: dict[str, Any], now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Restores the items `before` of a dict whose items are `now`."""
    for key in now.keys() - before.keys():
        del kept[key]
    kept.update(before)


def refill(kept: dict[Any, Any]) -> Callable[[Contents], None]:
    """A `put` for a dict."""

    def put(before: Contents) -> None:
        kept.clear()
        kept.update(before)

    return put


def refill_list(kept: Any) -> Callable[[Contents], None]:
    """A `put` for a list or deque."""

    def put(before: Contents) -> None:
        kept.clear()
        kept.extend(before.values())

    return put


def refill_set(kept: set[Any]) -> Callable[[Contents], None]:
    """A `put` for a set."""

    def put(before: Contents) -> None:
        kept.clear()
        kept.update(before[""])

    return put


def refill_cell(cell: types.CellType) -> Callable[[Contents], None]:
    """A `put` for a variable that a function closes over."""

    def put(before: Contents) -> None:
        if before:
            cell.cell_contents = before[""]

    return put


def refill_array(array: np.ndarray[Any, Any]) -> Callable[[Any], None]:
    """A function that writes back dtype, shape and bytes."""

    def put(before: tuple[str, tuple[int, ...], bytes]) -> None:
        array[...] = np.frombuffer(before[2], dtype=array.dtype).reshape(before[1])

    return put


def joined_name(path: str, name: str) -> str:
    """The name of an attribute of the object at `path`."""
    return f"{path}.{name}" if path else name


def attribute_name(path: str) -> Callable[[Any], str]:
    """A function that names the attributes of the object at `path`."""
    return lambda key: joined_name(path, str(key))


def item_name(path: str) -> Callable[[Any], str]:
    """A function that names the items of the object at `path`."""
    return lambda key: f"{path}[{key!r}]"


def argument_name(key: Any) -> str:
    """The name of an argument of a partial function."""
    return f"args[{key}]" if isinstance(key, int) else str(key)
