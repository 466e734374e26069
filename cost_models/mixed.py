"""The `MixedCluster`: groups of nodes, each a `Cluster` of one kind, and the ways between them.

Devices are numbered through the groups in their order. A mesh is laid on devices of one kind, so
whoever plans in stages takes a `slice` for each.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from cost_models.errors import BadHardware, BadValue
from cost_models.machine import Cluster

__all__ = ["Bridge", "Machine", "MixedCluster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """The way between two groups of nodes: a message leaves by the NICs of one and arrives by those
    of the other, over links of kind `link`, in `latency` seconds more than a hop takes. All
    messages of one direction together move at most `bandwidth` bytes/s, one pair of devices at most
    `pair_bandwidth`."""

    groups: tuple[int, int]
    link: str
    latency: float = 0.0
    bandwidth: float | None = None
    pair_bandwidth: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedCluster:
    """`groups` of nodes of unlike kinds. There is a bridge between every two of them."""

    name: str
    groups: tuple[Cluster, ...]
    bridges: tuple[Bridge, ...]

    def __post_init__(self) -> None:
        there = {bridge.groups for bridge in self.bridges}
        for pair in itertools.combinations(range(len(self.groups)), 2):
            if pair not in there:
                one, other = (self.groups[index] for index in pair)
                raise BadHardware(
                    f"{self.name!r}: there is no path between {one.name!r} ({_network(one)}) and "
                    f"{other.name!r} ({_network(other)}): give [[bridges]] between them"
                )
        libraries = {group.library.name for group in self.groups}
        if len(libraries) > 1:
            raise BadHardware(
                f"{self.name!r}: its groups have the libraries {', '.join(sorted(libraries))}: one "
                "library must reach all of them"
            )

    @property
    def num_devices(self) -> int:
        return sum(group.num_devices for group in self.groups)

    @property
    def starts(self) -> tuple[int, ...]:
        """The first device of every group."""
        sizes = (group.num_devices for group in self.groups[:-1])
        return tuple(itertools.accumulate(sizes, initial=0))

    def group_of(self, device: int) -> int:
        """The group of a device."""
        return max(index for index, start in enumerate(self.starts) if start <= device)

    def slice(self, first: int, count: int) -> Cluster:
        """`count` devices from device `first` on, which must be of one kind; see `Cluster.slice`.
        Raises `BadValue` for devices that are not there, or not of one kind."""
        if first < 0 or count < 1 or first + count > self.num_devices:
            raise BadValue(
                f"{self.name!r} has {self.num_devices} devices: {count} from device {first} on are "
                "no slice of it"
            )
        index = self.group_of(first)
        group, start = self.groups[index], self.starts[index]
        if first + count > start + group.num_devices:
            last = self.groups[self.group_of(first + count - 1)]
            raise BadValue(
                f"{count} devices from device {first} of {self.name!r} on are of several kinds "
                f"({group.device.name} to device {start + group.num_devices - 1}, then "
                f"{last.device.name}): a stage has devices of one kind"
            )
        return group.slice(first - start, count)

    def bridge(self, one: int, other: int) -> Bridge:
        """The way between two groups, by their indices."""
        pair = (min(one, other), max(one, other))
        return next(bridge for bridge in self.bridges if bridge.groups == pair)


#: What has devices and links: of one kind, or of several.
Machine = Cluster | MixedCluster


def _network(cluster: Cluster) -> str:
    return "no network" if cluster.inter is None else cluster.inter.link
