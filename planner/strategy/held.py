"""When values are held: from their writers to their last readings, or, if an op runs again, in
forward and from its second run on.

CostTable -> the times of each value, by the mode of its writer.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from planner.graph.sections import is_accumulate
from planner.strategy.cost_table import CostTable
from planner.strategy.strategies import AGAIN, KEPT, SECOND
from planner.strategy.traced_model import Use, Uses

__all__ = ["Held"]

#: From which node to which (exclusive).
Times = tuple[tuple[int, int], ...]


class Held:
    """The times at which the values of a table's model are held."""

    def __init__(self, table: CostTable) -> None:
        self.table, self.model, self.readings = table, table.model, table.readings
        #: When each root value, or a view that shares its memory, is read last.
        self.last = self._last_readings(self.readings.uses)

    @cached_property
    def _last_in(self) -> dict[str, dict[int, int]]:
        """The same in forward, and in backward by what is no second run."""
        return {
            phase: self._last_readings(
                {key: uses for key, uses in self.model.uses.items() if key[1] == phase}
            )
            for phase in ("forward", "backward")
        }

    def times(self, uses: list[Use]) -> list[int]:
        """When a value is read; the update is left out."""
        return [at for at in map(self.readings.time, uses) if at is not None]

    def looked_at(self, value: int) -> int | None:
        """The root value whose memory a value shares, if the op that made it returns a view that
        has a layout of its own (expand, slice, split); else None."""
        writer = self.model.graph.values[value].writer
        return None if writer is None else self.looked_at_by(writer)

    def looked_at_by(self, node: int) -> int | None:
        """The root value of which an op returns a view; None for any other op."""
        if self.model.dims.ops[node].signature.kind != "view":
            return None
        return self.model.roots[self.model.graph.nodes[node].operands[0]].value

    def _last_readings(self, readings: Uses) -> dict[int, int]:
        last: dict[int, int] = {}
        for (value, _), uses in readings.items():
            last[value] = max([last.get(value, -1), *self.times(uses)])
        # Views come after the values that they are views of.
        for value in sorted(last, reverse=True):
            under = self.looked_at(value)
            if under is not None:
                last[under] = max(last.get(under, -1), last[value])
        return last

    def _throughout(self, value: int, uses: list[Use], start: int) -> Times:
        """The times of a value that its writer, node `start`, keeps: up to its last reading. A
        parameter that can be cast again for backward is not held between the two phases: if memory
        is short, it is cast again. A sum over microbatches is held from the first of them to the
        last: as long as it is not smaller than its reduced form, that is its largest."""
        if is_accumulate(self.model.graph.nodes[start]):
            return ((0, len(self.model.graph.nodes) + 1),)
        end = max(self.last[value], start) + 1
        if value not in self.model.recastable:
            return ((start, end),)
        forward, backward = (
            self.times([use for use in uses if use.phase == phase])
            for phase in ("forward", "backward")
        )
        return (start, max([start, *forward]) + 1), (min(backward), end)

    def by_mode(
        self, modes: Iterable[str], value: int, uses: list[Use], start: int
    ) -> dict[str, Times]:
        """The times of a value under each of the modes that its writer, node `start`, may have."""
        distinct = dict.fromkeys(modes)
        if list(distinct) == [KEPT]:
            return {KEPT: self._throughout(value, uses, start)}
        return {mode: self._under(mode, value, uses, start) for mode in distinct}

    def _under(self, mode: str, value: int, uses: list[Use], start: int) -> Times:
        """The times of a value under a mode of its writer, node `start`."""
        forward = max(start, self._last_in["forward"].get(value, -1)) + 1
        direct = self.times([use for use in uses if not use.again])
        later = [at for at in direct if at >= forward] or self.times(
            [use for use in uses if use.again]
        )
        if mode not in self.table.leaving(value) or not later:
            return ((start, forward),)
        end = max(self._last_in["backward"].get(value, -1), *later) + 1
        stays = mode not in SECOND or (mode == AGAIN and value in self.model.crossing)
        return ((start, end),) if stays else ((start, forward), (min(later), end))
