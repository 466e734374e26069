"""The links that messages between pairs of devices cross, and how crowded they are.

All pairs send at the same time. A link that several cross is shared by their bytes; what counts for
a pair is the most crowded of its links, in seconds for each byte that a pair of weight 1 sends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cost_models.errors import BadHardware
from cost_models.group_cells import Ints
from cost_models.machine import Cluster
from cost_models.mixed import Machine, MixedCluster

__all__ = ["PairLinks", "pair_links"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairLinks:
    """Of every pair: `hop_kinds[hops[p]]`, the kinds of links that it hops over; `latency`, seconds
    beside those hops; `per_byte`, seconds for a byte. `crosses`: whether some pair leaves its
    node."""

    hop_kinds: tuple[tuple[str, ...], ...]
    hops: Ints
    latency: Floats
    per_byte: Floats
    crosses: bool

    @property
    def num_pairs(self) -> int:
        return len(self.hops)


class _Ends(NamedTuple):
    """The devices at one end of the pairs: the group of nodes of each, its node there, its node
    counted through all groups, its place in the node."""

    device: Ints
    group: Ints
    node: Ints
    any_node: Ints
    local: Ints

    def of(self, who: Ints) -> _Ends:
        return _Ends(*(column[who] for column in self))


class _Pairs(NamedTuple):
    """Pairs by number, their ends, and the bytes of each for one byte of a pair of weight 1."""

    who: Ints
    source: _Ends
    target: _Ends
    weights: Floats

    def those(self, which: NDArray[np.bool_]) -> _Pairs:
        at = np.flatnonzero(which)
        return _Pairs(self.who[at], self.source.of(at), self.target.of(at), self.weights[at])

    @property
    def ends(self) -> tuple[_Ends, _Ends]:
        return self.source, self.target

    @property
    def streams(self) -> Ints:
        """A number for each pair of devices."""
        most = int(self.target.device.max(initial=0)) + 1
        return self.source.device * most + self.target.device


class _Crossing(NamedTuple):
    """Pairs `who` move `shares` over `links` (numbers of one crossing's links) of `rates`
    bytes/s."""

    who: Ints
    links: Ints
    shares: Floats
    rates: Floats | float


def pair_links(machine: Machine, ends: Ints, weights: Floats) -> PairLinks:
    """The links of pairs `ends[p]` (source, target), which are different devices; pair p sends
    `weights[p]` times the bytes of a pair of weight 1. Raises `BadHardware` for pairs on different
    nodes without a network."""
    groups = machine.groups if isinstance(machine, MixedCluster) else (machine,)
    source, target = (_ends(groups, ends[:, side]) for side in (0, 1))
    pairs = _Pairs(np.arange(len(ends)), source, target, weights)
    per_byte = np.zeros(len(ends))
    for crossing in _crossings(machine, groups, pairs):
        np.maximum.at(per_byte, crossing.who, _seconds(crossing))
    hop_kinds, hops, latency = _hops(machine, groups, pairs)
    return PairLinks(
        hop_kinds=hop_kinds,
        hops=hops,
        latency=latency,
        per_byte=per_byte + _passes(groups, pairs),
        crosses=bool((source.any_node != target.any_node).any()),
    )


def _ends(groups: tuple[Cluster, ...], devices: Ints) -> _Ends:
    def before(counts: list[int]) -> Ints:
        return np.cumsum([0, *counts[:-1]])

    starts = before([group.num_devices for group in groups])
    index = np.searchsorted(starts, devices, side="right") - 1
    width = np.array([group.node_width for group in groups])[index]
    place = devices - starts[index] + np.array([group.first for group in groups])[index]
    others = before([group.num_nodes for group in groups])[index]
    return _Ends(devices, index, place // width, place // width + others, place % width)


def _load(links: Ints, shares: Floats) -> Floats:
    """For each crossing of a link, the bytes that cross that link."""
    if not len(links):
        return np.zeros(0)
    _, link = np.unique(links, return_inverse=True)
    return np.asarray(np.bincount(link, shares)[link], np.float64)


def _seconds(crossing: _Crossing) -> Floats:
    return np.asarray(_load(crossing.links, crossing.shares) / crossing.rates)


def _crossings(machine: Machine, groups: tuple[Cluster, ...], pairs: _Pairs) -> Iterator[_Crossing]:
    """All crossings of links by the pairs."""
    inside = pairs.source.any_node == pairs.target.any_node
    away = pairs.those(~inside)
    for index, group in enumerate(groups):
        yield from _in_nodes(group, pairs.those(inside & (pairs.source.group == index)))
        here = (away.source.group == index) & (away.target.group == index)
        yield from _on_fabric(group, away.those(here))
    for end in away.ends:
        yield _over_nics(groups, end, away)
    yield from _over_bridges(machine, away.those(away.source.group != away.target.group))


def _in_nodes(group: Cluster, pairs: _Pairs) -> Iterator[_Crossing]:
    """Ports of a switch or of the host, or direct links and the host for those without."""
    intra = group.intra
    rate, rest = intra.bandwidth * intra.efficiency, pairs
    if intra.fabric == "mesh":
        bricks = _bricks(group, pairs)
        linked, rest = pairs.those(bricks > 0), pairs.those(bricks == 0)
        way = linked.source.device * group.node_width + linked.target.local
        yield _Crossing(
            linked.who, way, linked.weights, rate * bricks[bricks > 0].astype(np.float64)
        )
        rate = intra.host_bandwidth or 0.0
    for end in rest.ends:
        yield _Crossing(rest.who, end.device, rest.weights, rate)
    if intra.shared_bandwidth is not None:
        yield _Crossing(pairs.who, pairs.source.node, pairs.weights, intra.shared_bandwidth)


def _bricks(group: Cluster, pairs: _Pairs) -> Ints:
    """The direct links of every pair."""
    ends = zip(pairs.source.local.tolist(), pairs.target.local.tolist(), strict=True)
    return np.array([group.intra.bricks(a, b) for a, b in ends], np.int64)


def _over_nics(groups: tuple[Cluster, ...], end: _Ends, pairs: _Pairs) -> _Crossing:
    """The NICs next to one end; a device that has several sends an equal share over each."""
    most = max((group.inter.nics_per_node for group in groups if group.inter), default=0)
    who, links, shares, rates = [pairs.who[:0]], [pairs.who[:0]], [np.zeros(0)], [np.zeros(0)]
    for index, group in enumerate(groups):
        places = np.unique(end.local[end.group == index]).tolist()
        for local in places:
            here = (end.group == index) & (end.local == local)
            nics, rate = _nics(group, local)
            for nic in nics:
                who.append(pairs.who[here])
                links.append(end.any_node[here] * most + nic)
                shares.append(pairs.weights[here] / len(nics))
                rates.append(np.full(int(here.sum()), rate))
    return _Crossing(
        np.concatenate(who), np.concatenate(links), np.concatenate(shares), np.concatenate(rates)
    )


def _nics(group: Cluster, local: int) -> tuple[tuple[int, ...], float]:
    """The NICs next to a device, and the bytes/s of each."""
    if group.inter is None:
        raise BadHardware(f"{group.name!r} has no [inter] table: there is no path out of its nodes")
    return group.nic_of(local), group.inter.bandwidth * group.inter.efficiency


def _on_fabric(group: Cluster, pairs: _Pairs) -> Iterator[_Crossing]:
    """The links out of blocks and into them, and the most that a pair moves. The links of a block
    are those of the nodes that the cluster has in it."""
    inter = group.inter
    if inter is None:
        return
    if inter.pair_bandwidth is not None:
        yield _Crossing(pairs.who, pairs.streams, pairs.weights, inter.pair_bandwidth)
    for level in group.narrow_levels:
        leaving = pairs.those(pairs.source.node // level.nodes != pairs.target.node // level.nodes)
        out = inter.nics_per_node * inter.bandwidth * inter.efficiency / level.oversubscription
        for end in leaving.ends:
            block = end.node // level.nodes
            nodes = np.minimum((block + 1) * level.nodes, group.num_nodes) - block * level.nodes
            yield _Crossing(leaving.who, block, leaving.weights, out * nodes.astype(np.float64))


def _over_bridges(machine: Machine, pairs: _Pairs) -> Iterator[_Crossing]:
    """The ways between groups of nodes, each direction apart."""
    for bridge in machine.bridges if isinstance(machine, MixedCluster) else ():
        for a, b in (bridge.groups, bridge.groups[::-1]):
            mine = pairs.those((pairs.source.group == a) & (pairs.target.group == b))
            for links, rate in (
                (mine.who * 0, bridge.bandwidth),
                (mine.streams, bridge.pair_bandwidth),
            ):
                if rate is not None:
                    yield _Crossing(mine.who, links, mine.weights, rate)


def _passes(groups: tuple[Cluster, ...], pairs: _Pairs) -> Floats:
    """Seconds per byte of a rank's pass over what it sends, or receives, if the kernel cannot keep
    up with the links."""
    rates = [group.intra.pass_bandwidth for group in groups]
    per_byte = np.array([0.0 if rate is None else 1.0 / rate for rate in rates])
    ends = (_load(end.device, pairs.weights) * per_byte[end.group] for end in pairs.ends)
    return np.asarray(np.maximum(*ends))


# --------------------------------------------------------------------------------------- latencies


def _hops(
    machine: Machine, groups: tuple[Cluster, ...], pairs: _Pairs
) -> tuple[tuple[tuple[str, ...], ...], Ints, Floats]:
    """The kinds of hops, the kind of every pair, and its latency beside them."""
    kinds: dict[tuple[str, ...], int] = {}
    hops, latency = np.zeros(len(pairs.who), np.int64), np.zeros(len(pairs.who))
    for which, kind, seconds in _ways(machine, groups, pairs):
        hops[which.who] = kinds.setdefault(kind, len(kinds))
        latency[which.who] += seconds
    return tuple(kinds), hops, latency


def _ways(
    machine: Machine, groups: tuple[Cluster, ...], pairs: _Pairs
) -> Iterator[tuple[_Pairs, tuple[str, ...], float | Floats]]:
    """Parts of the pairs, each with its kinds of hops and its latency beside them."""
    inside = pairs.source.any_node == pairs.target.any_node
    for index, group in enumerate(groups):
        near = pairs.those(inside & (pairs.source.group == index))
        direct = _bricks(group, near) > 0 if group.intra.fabric == "mesh" else near.who >= 0
        yield near.those(direct), (group.intra.link,), group.intra.overhead
        yield near.those(~direct), ("pcie",), group.intra.overhead
        alike = (pairs.source.group == index) & (pairs.target.group == index)
        yield from _ways_on_fabric(group, pairs.those(~inside & alike))
    for bridge in machine.bridges if isinstance(machine, MixedCluster) else ():
        over = (np.minimum(*(end.group for end in pairs.ends)) == bridge.groups[0]) & (
            np.maximum(*(end.group for end in pairs.ends)) == bridge.groups[1]
        )
        calls = [inter.overhead for i in bridge.groups if (inter := groups[i].inter) is not None]
        yield pairs.those(over & ~inside), (bridge.link,), max(calls, default=0.0) + bridge.latency


def _ways_on_fabric(
    group: Cluster, pairs: _Pairs
) -> Iterator[tuple[_Pairs, tuple[str, ...], float | Floats]]:
    """Over the fabric of one group. Inside a block with rails, a message to another rail first goes
    over the node's own switch to the device next to the NIC of that rail (NCCL's PXN)."""
    inter = group.inter
    if inter is None:
        return
    seconds = np.full(len(pairs.who), inter.overhead)
    turns = np.zeros(len(pairs.who), bool)
    first = np.array([group.nic_of(local)[0] for local in range(group.node_width)])
    rails = first[pairs.source.local] != first[pairs.target.local]
    for level in inter.levels:
        leaves = pairs.source.node // level.nodes != pairs.target.node // level.nodes
        seconds += leaves * level.latency
        turns |= ~leaves & rails & (level.rails and group.intra.fabric == "switch")
    yield pairs.those(~turns), (inter.link,), seconds[~turns]
    yield pairs.those(turns), (group.intra.link, inter.link), seconds[turns]
