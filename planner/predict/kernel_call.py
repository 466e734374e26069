"""One op on one rank: all that its workspace depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cost_models.memory import dtype_bytes

__all__ = ["KernelCall", "Kind", "nbytes_of"]

#: The shape of a local tensor, and the name of its dtype.
Kind = tuple[tuple[int, ...], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCall:
    """One op on one rank: the kinds of its arguments by position (None: not a tensor); that of its
    first result; `ranks`, the number of ranks over which the kernel itself communicates (1: it does
    not); `host`, whether a CPU runs it; `settings`, all its arguments, of which those that are no
    tensors say how it runs."""

    arguments: tuple[Kind | None, ...]
    result: Kind
    ranks: int = 1
    host: bool = True
    settings: tuple[Any, ...] = ()

    @property
    def last(self) -> object:
        """The last argument; None if there is none."""
        return self.settings[-1] if self.settings else None

    def kind(self, place: int) -> Kind:
        """The kind of an argument that is a tensor."""
        found = self.arguments[place]
        assert found is not None
        return found

    def nbytes(self, place: int) -> int:
        """Bytes of an argument."""
        return nbytes_of(self.kind(place))

    def shape(self, place: int) -> tuple[int, ...]:
        """The shape of an argument."""
        return self.kind(place)[0]


def nbytes_of(kind: Kind) -> int:
    """Bytes of a local tensor."""
    return math.prod(kind[0]) * dtype_bytes(kind[1])
