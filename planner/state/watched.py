"""A number that notes every use except arithmetic, to find out whether a step uses a number that
changes from step to step."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

__all__ = ["Watched", "plain"]


class Watched:
    """A proxy of a number. Arithmetic gives another proxy with the same root; a decision, an index
    or a use outside Python sets the root's `asked`. Printing does not."""

    def __init__(self, value: Any, root: Watched | None = None) -> None:
        self.value, self.root, self._asked = plain(value), self if root is None else root, False

    @property
    def asked(self) -> bool:
        """Whether it was used other than in arithmetic."""
        return self.root._asked

    def tell(self) -> Any:
        """The number; notes that it is used."""
        self.root._asked = True
        return self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)

    def __str__(self) -> str:
        return str(self.value)

    __repr__ = __str__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python asks what it is, not what number
            raise AttributeError(name)
        return getattr(self.tell(), name)


def plain(value: Any) -> Any:
    """The number behind a proxy; anything else unchanged."""
    return value.value if isinstance(value, Watched) else value


def _arithmetic(function: Callable[..., Any], turned: bool = False) -> Callable[..., Any]:
    def run(self: Watched, *others: Any) -> Any:
        values = tuple(map(plain, others))
        if not all(isinstance(value, int | float) for value in values):
            return function(*values, self.tell()) if turned else function(self.tell(), *values)
        return Watched(
            function(*values, self.value) if turned else function(self.value, *values), self.root
        )

    return run


def _use(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *others: function(self.tell(), *map(plain, others))


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(Watched, f"__{_name}__", _arithmetic(getattr(operator, _name)))
    setattr(Watched, f"__r{_name}__", _arithmetic(getattr(operator, _name), turned=True))
for _name in ("neg", "pos", "abs"):
    setattr(Watched, f"__{_name}__", _arithmetic(getattr(operator, _name)))
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "index", "and", "or", "xor", "lshift", "rshift"):
    setattr(
        Watched,
        f"__{_name}__",
        _use(getattr(operator, f"{_name}_" if _name in ("and", "or") else _name)),
    )
for _name, _function in (
    ("bool", bool),
    ("int", int),
    ("float", float),
    ("hash", hash),
    ("round", round),
    ("complex", complex),
):
    setattr(Watched, f"__{_name}__", _use(_function))
