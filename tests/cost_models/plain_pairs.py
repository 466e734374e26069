"""Messages between pairs of devices, byte by byte over named links: slow, and easy to check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from cost_models.machine import Cluster
from cost_models.mixed import MixedCluster

__all__ = ["plain_seconds_per_byte"]

#: A link by name, its bytes/s, and the share of a pair's bytes that cross it.
Crossed = tuple[tuple[object, ...], float, float]


def plain_seconds_per_byte(
    machine: Cluster | MixedCluster, pairs: Sequence[tuple[int, int]], weights: Sequence[float]
) -> list[float]:
    """Of every pair, the seconds of its most crowded link for a byte of a pair of weight 1."""
    load: Counter[tuple[object, ...]] = Counter()
    for (source, target), weight in zip(pairs, weights, strict=True):
        for name, _, share in _links(machine, source, target):
            load[name] += share * weight
    return [
        max(load[name] / rate for name, rate, _ in _links(machine, source, target))
        for source, target in pairs
    ]


def _place(machine: Cluster | MixedCluster, device: int) -> tuple[int, Cluster, int]:
    if isinstance(machine, Cluster):
        return 0, machine, device
    index = machine.group_of(device)
    return index, machine.groups[index], device - machine.starts[index]


def _links(machine: Cluster | MixedCluster, source: int, target: int) -> Iterator[Crossed]:
    index, group, a = _place(machine, source)
    other, far, b = _place(machine, target)
    if (index, group.node_of(a)) == (other, far.node_of(b)):
        yield from _in_node(group, source, target, group.local_index(a), group.local_index(b))
        if group.intra.shared_bandwidth is not None:
            yield ("bus", index, group.node_of(a)), group.intra.shared_bandwidth, 1.0
        return
    for way, at, cluster, rank in (("out", index, group, a), ("in", other, far, b)):
        assert cluster.inter is not None
        nics = cluster.nic_of(cluster.local_index(rank))
        for nic in nics:
            rate = cluster.inter.bandwidth * cluster.inter.efficiency
            yield (way, at, cluster.node_of(rank), nic), rate, 1 / len(nics)
    if index != other:
        assert isinstance(machine, MixedCluster)
        bridge = machine.bridge(index, other)
        if bridge.bandwidth is not None:
            yield ("bridge", index, other), bridge.bandwidth, 1.0
        if bridge.pair_bandwidth is not None:
            yield ("pair", source, target), bridge.pair_bandwidth, 1.0
        return
    yield from _blocks(group, index, a, b)


def _in_node(group: Cluster, source: int, target: int, a: int, b: int) -> Iterator[Crossed]:
    intra = group.intra
    rate = intra.bandwidth * intra.efficiency
    if intra.fabric == "mesh":
        if intra.bricks(a, b):
            yield ("bricks", source, target), rate * intra.bricks(a, b), 1.0
            return
        assert intra.host_bandwidth is not None
        rate = intra.host_bandwidth
    yield ("port out", source), rate, 1.0
    yield ("port in", target), rate, 1.0


def _blocks(group: Cluster, index: int, a: int, b: int) -> Iterator[Crossed]:
    inter = group.inter
    assert inter is not None
    if inter.pair_bandwidth is not None:
        yield ("pair", index, a, b), inter.pair_bandwidth, 1.0
    for level in group.narrow_levels:
        from_block, to_block = group.node_of(a) // level.nodes, group.node_of(b) // level.nodes
        if from_block == to_block:
            continue
        out = inter.nics_per_node * inter.bandwidth * inter.efficiency / level.oversubscription
        for way, block in (("out of", from_block), ("into", to_block)):
            first = block * level.nodes
            nodes = min(first + level.nodes, group.num_nodes) - first
            yield (way, index, level.name, block), out * nodes, 1.0
