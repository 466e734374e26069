"""Arrays, random generators and iterators: objects whose contents have no names."""

from __future__ import annotations

import itertools
import random
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from planner.state.holder import Holder, put_nothing, refill_array

__all__ = ["stateful"]


#: Larger arrays are not watched, in bytes.
_LARGEST_ARRAY = 1 << 20


def stateful(path: str, thing: Any, shared: bool) -> Holder | None:
    """The holder of an array, a random generator or an iterator: their contents have no names."""

    def holder(
        get: Callable[[], Any], put: Callable[[Any], None] | None, chance: bool = False
    ) -> Holder:
        back = None if put is None else lambda before: put(before[""])
        return Holder(
            thing=thing,
            get=lambda: {"": get()},
            put=back,
            name=lambda _: path,
            shared=shared,
            chance=chance,
        )

    if isinstance(thing, np.ndarray):
        if thing.nbytes > _LARGEST_ARRAY or thing.dtype.hasobject:
            return None
        return holder(lambda: (str(thing.dtype), thing.shape, thing.tobytes()), refill_array(thing))
    if isinstance(thing, random.Random):
        return holder(thing.getstate, thing.setstate, chance=True)
    if isinstance(thing, np.random.Generator):
        return holder(
            lambda: _Shown(thing.bit_generator.state),
            lambda s: setattr(thing.bit_generator, "state", s.value),
            True,
        )
    if isinstance(thing, np.random.RandomState):
        return holder(lambda: _Shown(thing.get_state()), lambda s: thing.set_state(s.value), True)
    if isinstance(thing, itertools.count):
        return holder(lambda: repr(thing), None)
    if isinstance(thing, types.GeneratorType):
        return holder(
            lambda: thing.gi_frame and (thing.gi_frame.f_lasti, repr(thing.gi_frame.f_locals)), None
        )
    if isinstance(thing, Iterator):
        if hasattr(thing, "__length_hint__"):
            return holder(thing.__length_hint__, None)
        return holder(object, put_nothing)  # its position is hidden: as if every step moved it
    return None


class _Shown:
    """A value that equals another if both print the same."""

    def __init__(self, value: Any) -> None:
        self.value = value
        with np.printoptions(threshold=100_000):
            self.shown = repr(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shown) and self.shown == other.shown

    __hash__ = None  # type: ignore[assignment]
