"""A graph of units that is to be split into parts in a row, one for a device, and the split.

Parts are contiguous: no value goes from a later part to an earlier one, so the first parts together
are always an ideal, a set of units with all that comes before them. A device is loaded by the
seconds of its units and by the transfers of the nets that its part cuts: a net is the unit that
makes a value with all units that read it, and a part that has some but not all of a net sends the
value or receives it, once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cost_models.errors import BadValue

__all__ = ["Dag", "DagSplit", "Device", "Net", "Part", "load_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A kind of device: how many there are, the seconds of each unit on one (infinite if it cannot
    run there), whether it pays for the nets that its part cuts, and the bytes that it holds."""

    count: int
    seconds: tuple[float, ...]
    pays: bool = True
    limit: float = float("inf")


@dataclass(frozen=True, slots=True)
class Net:
    """Units that make or read a value, and the seconds to send or to receive it."""

    units: frozenset[int]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dag:
    """Units 0 to n, `before[unit]` the units that it needs, the nets, bytes of each unit."""

    before: tuple[frozenset[int], ...]
    nets: tuple[Net, ...]
    devices: tuple[Device, ...]
    nbytes: tuple[float, ...]

    def __post_init__(self) -> None:
        units = len(self.before)
        lengths = {len(self.nbytes), *(len(device.seconds) for device in self.devices)}
        if units < 1 or lengths != {units}:
            raise BadValue(f"{units} units, but seconds or bytes of {sorted(lengths)}: name each")
        if sum(device.count for device in self.devices) < 1:
            raise BadValue("no device: give a count of at least one")


@dataclass(frozen=True, slots=True)
class Part:
    """The units of one device, its kind by number."""

    device: int
    units: frozenset[int]


@dataclass(frozen=True, slots=True)
class DagSplit:
    """The parts in order, the load of the most loaded device, and a bound: no split into contiguous
    parts has a smaller one."""

    parts: tuple[Part, ...]
    load: float
    bound: float


def load_of(dag: Dag, part: Part) -> float:
    """The seconds of a device by the definition above, infinite if its units do not fit."""
    device = dag.devices[part.device]
    if sum(dag.nbytes[unit] for unit in part.units) > device.limit:
        return float("inf")
    cut: Iterable[Net] = (
        net for net in dag.nets if net.units & part.units and not net.units <= part.units
    )
    sent = sum(net.seconds for net in cut) if device.pays else 0.0
    return sum(device.seconds[unit] for unit in part.units) + sent
