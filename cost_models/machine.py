"""The `Cluster`: devices, switches, NICs and the links between them, as a hardware file describes
them.

Device `r` is local device `r % node_width` of node `r // node_width`: meshes are laid on
consecutive devices. A slice of a cluster begins at place `first`: its device `r` is where the whole
cluster has its device `first + r`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

from cost_models.device import KINDS, Device
from cost_models.errors import BadHardware, BadValue, unknown_name
from cost_models.library import MEASURED, Library

__all__ = [
    "Cluster",
    "CollectiveRow",
    "ContentionRow",
    "Inter",
    "Intra",
    "Level",
    "Link",
    "device_name",
]

FABRICS = ("switch", "mesh", "host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One direction of a link: bytes/s, seconds, and `kind` (`nvlink`, `pcie`, `infiniband`,
    ...)."""

    source: str
    target: str
    bandwidth: float
    latency: float
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveRow:
    """One measured collective: `num_groups` groups of `group_size` ranks at once, `nbytes` of
    the whole logical buffer. Of the kind `send`, `num_groups` pairs at once, `nbytes` for each."""

    kind: str
    group_size: int
    num_groups: int
    nbytes: float
    seconds: float

    def __post_init__(self) -> None:
        if self.kind not in MEASURED:
            raise BadHardware(
                f"collective_table: {unknown_name('collective', self.kind, MEASURED)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentionRow:
    """Kernels of `kind` take `slowdown` times as long if `num_devices` of a node compute at once,
    as on one CPU."""

    num_devices: int
    kind: str
    slowdown: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadHardware(f"contention: {unknown_name('kind of op', self.kind, KINDS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Intra:
    """What connects the devices of a node.

    `fabric`: `switch` (every device has one port of `bandwidth` per direction), `mesh` (`links` of
    (a, b, bricks), a brick is `bandwidth`; other pairs go over the host at `host_bandwidth` per
    device), `host` (every device has `bandwidth` to the host). All devices together move at most
    `shared_bandwidth`. `efficiency` is the share that a ring reaches, `overhead` seconds per call.
    If the kernel cannot keep up, each pass of a rank over its buffer adds bytes / `pass_bandwidth`.
    """

    fabric: str
    link: str
    bandwidth: float
    efficiency: float
    overhead: float
    links: tuple[tuple[int, int, int], ...] = ()
    shared_bandwidth: float | None = None
    host_bandwidth: float | None = None
    pass_bandwidth: float | None = None
    in_switch_reduction_efficiency: float | None = None

    def __post_init__(self) -> None:
        if self.fabric not in FABRICS:
            raise BadHardware(f"unknown fabric {self.fabric!r}, known: {', '.join(FABRICS)}")
        if (self.fabric == "mesh") != bool(self.links):
            raise BadHardware(
                f"the fabric 'mesh' needs links and other fabrics take none, but {self.fabric!r} "
                f"has {len(self.links)}"
            )
        if self.fabric == "mesh" and self.host_bandwidth is None:
            raise BadHardware(
                "a mesh needs host_bandwidth_gb_s, for pairs of devices without a link"
            )

    def bricks(self, a: int, b: int) -> int:
        """The number of direct links between local devices `a` and `b`."""
        return sum(count for x, y, count in self.links if {x, y} == {a, b})


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A level of the network: blocks of `nodes` consecutive nodes (a rack, a scalable unit, a pod).

    The NICs of a block together have `oversubscription` times the bandwidth of the links out of it;
    a message that leaves the block takes `latency` seconds more. `rails`: inside a block, NIC i of
    every node is on a switch of its own.
    """

    name: str
    nodes: int
    oversubscription: float = 1.0
    latency: float = 0.0
    rails: bool = False

    def __post_init__(self) -> None:
        if self.oversubscription < 1:
            raise BadHardware(
                f"level {self.name!r}: oversubscription is {self.oversubscription:g}: give how many "
                "times the bandwidth out of a block its NICs have, 1 or more"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Inter:
    """What connects nodes: NICs of `bandwidth` bytes/s per direction each, on one fabric. Blocks of
    nodes are limited by `levels`, the smallest first; without levels nothing blocks. One pair of
    devices moves at most `pair_bandwidth`, as over one TCP stream."""

    link: str
    nics_per_node: int
    bandwidth: float
    efficiency: float
    overhead: float
    levels: tuple[Level, ...] = ()
    pair_bandwidth: float | None = None

    def __post_init__(self) -> None:
        for below, above in itertools.pairwise(self.levels):
            if above.nodes <= below.nodes or above.nodes % below.nodes:
                raise BadHardware(
                    f"level {above.name!r} has blocks of {above.nodes} nodes, which are not several "
                    f"blocks of level {below.name!r}, of {below.nodes}: list the smallest blocks first"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """`num_devices` devices on `num_nodes` nodes, `node_width` of them used on each (the last
    node may use fewer). `first` is the place of the first device in its node and block of nodes: 0
    but for a slice."""

    name: str
    device: Device
    library: Library
    intra: Intra
    inter: Inter | None
    devices_per_node: int
    max_nodes: int
    num_devices: int
    num_nodes: int
    node_width: int
    collective_table: tuple[CollectiveRow, ...] = ()
    contention: tuple[ContentionRow, ...] = ()
    first: int = 0

    def __post_init__(self) -> None:
        if self.inter is None and self.max_nodes > 1:
            raise BadHardware(
                f"cluster {self.name!r}: max_nodes is {self.max_nodes}, but there is no [inter] table"
            )
        for a, b, count in self.intra.links:
            if not (
                0 <= a < self.devices_per_node
                and 0 <= b < self.devices_per_node
                and a != b
                and count > 0
            ):
                among = f"two of the {self.devices_per_node} devices of a node"
                raise BadHardware(
                    f"cluster {self.name!r}: link {[a, b, count]} is not between {among}"
                )

    def __hash__(self) -> int:
        """A cheap hash for caches; equality still compares every figure."""
        return hash(
            (
                self.name,
                self.num_devices,
                self.num_nodes,
                self.node_width,
                self.first,
                len(self.collective_table),
            )
        )

    def with_memory(self, nbytes: float) -> Cluster:
        """The same cluster with `nbytes` of usable memory per device, rounded down."""
        memory = int(nbytes) + self.device.reserved_memory
        return replace(self, device=replace(self.device, memory=memory))

    def slice(self, first: int, count: int) -> Cluster:
        """`count` devices from device `first` on, as a cluster: the devices of one stage. Slices
        that lie in the same way in nodes and blocks are equal; all devices are the cluster itself.

        Raises `BadValue` for devices that are not there.
        """
        if first < 0 or count < 1 or first + count > self.num_devices:
            raise BadValue(
                f"{self.name!r} has {self.num_devices} devices: {count} from device {first} on are "
                "no slice of it"
            )
        if count == self.num_devices:
            return self
        start = self.first + first
        place = self._phase(start, count)
        nodes = (start % self.node_width + count - 1) // self.node_width + 1
        return replace(self, num_devices=count, num_nodes=nodes, first=place)

    def _phase(self, start: int, count: int) -> int:
        """The place in its node and blocks of a slice from place `start` on: within the largest
        unit out of which the slice reaches, since nothing beyond is crossed."""
        units = [self.node_width, *(self.node_width * one.nodes for one in self.narrow_levels)]
        crossed = [unit for unit in units if start % unit + count > unit]
        if crossed:
            return start % crossed[-1]
        return start % self.node_width if self.intra.fabric == "mesh" else 0

    def ranks_of(self, node: int) -> range:
        """The devices of a node."""
        start = node * self.node_width - self.first
        return range(max(start, 0), min(start + self.node_width, self.num_devices))

    def slowdown(self, kind: str) -> float:
        """How many times as long kernels of `kind` take if all used devices of a node compute at
        once; 1 if not measured. A fused kernel is as slow as elementwise ones if only those are.

        Log-log between the numbers of devices measured (one device: 1); proportional to their
        number beyond the last.
        """
        measured = {row.num_devices: row.slowdown for row in self.contention if row.kind == kind}
        if not measured:
            return self.slowdown("elementwise") if kind == "fused" else 1.0
        points = sorted({1: 1.0, **measured}.items())
        for (n0, s0), (n1, s1) in itertools.pairwise(points):
            if self.node_width <= n1:
                return float(s0 * (s1 / s0) ** (math.log(self.node_width / n0) / math.log(n1 / n0)))
        return points[-1][1] * self.node_width / points[-1][0]

    @property
    def narrow_levels(self) -> tuple[Level, ...]:
        """The levels of the network that slow messages down, the smallest blocks first."""
        levels = () if self.inter is None else self.inter.levels
        return tuple(one for one in levels if one.oversubscription > 1 or one.latency > 0)

    def node_of(self, rank: int) -> int:
        """The node of device `rank`."""
        return (self.first + rank) // self.node_width

    def local_index(self, rank: int) -> int:
        """The place of device `rank` in its node."""
        return (self.first + rank) % self.node_width

    def nic_of(self, local_index: int) -> tuple[int, ...]:
        """The NICs nearest to a local device: `nics_per_node / devices_per_node` of its own, or one
        that it shares."""
        assert self.inter is not None
        nics, devices = self.inter.nics_per_node, self.devices_per_node
        first = local_index * nics // devices
        return tuple(range(first, max(first + 1, (local_index + 1) * nics // devices)))


def device_name(rank: int) -> str:
    """The name of device `rank` in the topology graph."""
    return f"device{rank}"
