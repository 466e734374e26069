"""The groups of a mesh and what links they share, rank by rank: slow, and easy to check."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from cost_models.machine import Cluster

__all__ = ["groups", "plain_links"]


def groups(sizes: tuple[int, ...], axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The groups of ranks that differ only on `axes`, each in mesh order."""
    found: dict[tuple[int, ...], list[int]] = {}
    for rank in range(math.prod(sizes)):
        place, rest = [], rank
        for size in reversed(sizes):
            rest, position = divmod(rest, size)
            place.append(position)
        key = tuple(p for axis, p in enumerate(reversed(place)) if axis not in axes)
        found.setdefault(key, []).append(rank)
    return [tuple(group) for group in found.values()]


def plain_links(
    cluster: Cluster, sizes: tuple[int, ...], axes: tuple[int, ...]
) -> set[tuple[object, ...]]:
    """Of every group: its size, nodes, widest node, bytes/s of a rank's share of a bus or port, and
    through NICs; and for each level its blocks, widest block, and bytes/s out of a block."""
    all_groups = groups(sizes, axes)
    active = Counter(cluster.node_of(rank) for group in all_groups for rank in group)
    nics: Counter[tuple[int, int]] = Counter()
    for group in all_groups:
        nics.update(_nics(cluster, group))
    out = set()
    for group in all_groups:
        nodes = Counter(cluster.node_of(rank) for rank in group)
        through = math.inf
        if len(nodes) > 1:
            crossed = _nics(cluster, group)
            through = min(
                sum(_nic(cluster) / nics[pair] for pair in sorted(crossed) if pair[0] == node)
                for node in nodes
            )
        ports = min(_port(cluster, count, active[node]) for node, count in nodes.items())
        above = tuple(_blocks(cluster, sizes, all_groups, group))
        out.add((len(group), len(nodes), max(nodes.values()), ports, through, above))
    return out


def _nic(cluster: Cluster) -> float:
    assert cluster.inter is not None
    return cluster.inter.bandwidth * cluster.inter.efficiency


def _nics(cluster: Cluster, group: tuple[int, ...]) -> set[tuple[int, int]]:
    if len({cluster.node_of(rank) for rank in group}) == 1:
        return set()
    return {
        (cluster.node_of(rank), nic)
        for rank in group
        for nic in cluster.nic_of(cluster.local_index(rank))
    }


def _port(cluster: Cluster, members: int, active: int) -> float:
    if members == 1:
        return math.inf
    port, shared = (
        cluster.intra.bandwidth * cluster.intra.efficiency,
        cluster.intra.shared_bandwidth,
    )
    return port if shared is None else min(port, shared / active)


def _blocks(
    cluster: Cluster,
    sizes: tuple[int, ...],
    all_groups: list[tuple[int, ...]],
    group: tuple[int, ...],
) -> Iterator[tuple[int, int, float, float]]:
    assert cluster.inter is not None
    for level in cluster.narrow_levels:
        blocks = Counter(cluster.node_of(rank) // level.nodes for rank in group)
        if len(blocks) == 1:
            continue
        leaving: Counter[int] = Counter()
        for other in all_groups:
            touched = {cluster.node_of(rank) // level.nodes for rank in other}
            leaving.update(touched if len(touched) > 1 else ())
        used = Counter(
            node // level.nodes for node in {cluster.node_of(r) for r in range(math.prod(sizes))}
        )
        out = _nic(cluster) * cluster.inter.nics_per_node / level.oversubscription
        rate = min(used[block] * out / leaving[block] for block in blocks)
        yield len(blocks), max(blocks.values()), rate, level.latency
