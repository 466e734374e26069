"""The draft of a program: the instructions in order of need, and the values that they write.

Every step of lowering adds to it; the passes that merge, move and free instructions read it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from planner.dims.ties import layer_of
from planner.program.program import Instruction

__all__ = ["Draft", "base_of"]


def base_of(alias: Mapping[int, int], value: int) -> int:
    """The value whose memory `value` uses; `alias` maps a view to the value that it is a view
    of."""
    while value in alias:
        value = alias[value]
    return value


class Draft:
    """`value_bytes` are the bytes of each value, 0 for a view; `alias` maps a view to the value
    that it is a view of; `gathers` are the instructions that cast or gather a parameter, each with
    the layer and phase that it is for; those in `once` gather it for the whole step."""

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self.gathers: dict[str, str] = {}
        self.once: set[str] = set()
        self.value_bytes: dict[int, int] = {}
        self.alias: dict[int, int] = {}
        self._names: dict[str, int] = defaultdict(int)

    def new(self, nbytes: int, alias: int | None = None) -> int:
        """The id of a new value of `nbytes`, or of a view of `alias`, which takes none."""
        number = len(self.value_bytes)
        self.value_bytes[number] = 0 if alias is not None else nbytes
        if alias is not None:
            self.alias[number] = alias
        return number

    def name(self, stem: str) -> str:
        """An id that no other instruction has."""
        self._names[stem] += 1
        return f"{stem}#{self._names[stem]}"

    def base(self, value: int) -> int:
        """The value whose memory `value` uses."""
        return base_of(self.alias, value)

    def start_ahead(self, parameter: str, phase: str) -> None:
        """Marks the last instruction, which casts or gathers the parameter of this name, as being
        for the layer that reads it."""
        layer = layer_of(parameter.rpartition(".")[0])
        self.gathers[self.instructions[-1].id] = f"{layer}:{phase}"
