"""Seconds of a collective by each algorithm and protocol of a library.

Every algorithm and protocol is a line a + b n in the bytes n of the whole logical buffer (as
counted by nccl-tests). Symbols: k ranks on N nodes, w per node, B a rank's bytes/s along the ring
inside a node, E the group's bytes/s through a node's NICs, l a hop's latency (l_i inside, l_e
between nodes). A block of nodes (a pod) out of which a group sends U bytes/s is to the network what
a node is: what is sent out of it takes n / U for n / E, and a message to another block takes the
level's latency more. Source: MODELLING 5.1; Thakur et al., "Optimization of Collective Communication
Operations in MPICH", 2005; NCCL src/graph/tuning.cc for the latencies.
"""

from __future__ import annotations

import math

from cost_models.errors import BadValue
from cost_models.group_links import GroupLinks
from cost_models.library import Protocol
from cost_models.machine import Cluster

__all__ = ["Line", "fastest_lines"]

#: a, b of a + b n: seconds, and seconds per byte.
Line = tuple[float, float]


def _hops(cluster: Cluster, links: GroupLinks, protocol: Protocol, rounds: int) -> float:
    """Latency of `rounds` trips over the ring's k - 1 hops, N - 1 of them between nodes: rounds
    ((k - N) l_i + (N - 1) l_e); a ring leaves each block once."""
    outside = links.num_nodes - 1
    inside = links.size - links.num_nodes
    seconds = inside * protocol.hop(links.hop) if inside else 0.0
    if outside:
        assert cluster.inter is not None
        seconds += outside * protocol.hop(cluster.inter.link)
    seconds += sum((block.num_blocks - 1) * block.latency for block in links.blocks)
    return rounds * seconds


def _once(links: GroupLinks) -> float:
    """The group's bytes/s through the network if what it sends crosses the edge of each node, and
    of each block, once: as in a ring."""
    return min(links.node, *(block.rate for block in links.blocks), math.inf)


def _doublings(links: GroupLinks) -> float:
    """Latency above the nodes of an algorithm that reaches twice as many blocks in each round."""
    return sum(math.ceil(math.log2(b.num_blocks)) * b.latency for b in links.blocks)


def _ring(cluster: Cluster, links: GroupLinks, kind: str) -> list[Line]:
    """Ring: r ((k - 1) l + (k - 1) / k n / min(B, E) + n p / 2), with r = 2 for an all-reduce
    and 1 for an all-gather or reduce-scatter, and p the seconds per byte of a rank's pass over its
    buffer."""
    rounds = 2 if kind == "all_reduce" else 1
    share = rounds * (
        (links.size - 1) / links.size / min(links.ring, _once(links)) + links.pass_time / 2
    )
    return [
        (
            protocol.base_latency + _hops(cluster, links, protocol, rounds),
            share / protocol.bandwidth_share,
        )
        for protocol in cluster.library.of("ring")
    ]


def _tree(cluster: Cluster, links: GroupLinks, kind: str) -> list[Line]:
    """Double tree, a chain inside nodes: 2 ((w - 1) l_i + ceil(log2 N) l_e) + max(n / T, c n / E);
    all-reduce only.

    T is a rank's rate if up and down share its port; c = 1 for two nodes (each is root of one
    tree), 2 for more (a node receives from two children in one tree and from its parent in both).
    Source: Sanders et al., "Two-tree algorithms", 2009.
    """
    if kind != "all_reduce":
        return []
    edges = [(links.num_nodes, links.node), *((b.num_blocks, b.rate) for b in links.blocks)]
    through = [(1.0 if count == 2 else 2.0) / rate for count, rate in edges if count > 1]
    per_byte = max(1.0 / links.tree, *through, 0.0)
    lines = []
    for protocol in cluster.library.of("tree"):
        inside = (links.width - 1) * protocol.hop(links.hop) if links.width > 1 else 0.0
        outside = (
            math.ceil(math.log2(links.num_nodes)) * _inter_hop(cluster, protocol)
            + _doublings(links)
            if links.num_nodes > 1
            else 0.0
        )
        lines.append(
            (protocol.base_latency + 2 * (inside + outside), per_byte / protocol.bandwidth_share)
        )
    return lines


def _halving_doubling(cluster: Cluster, links: GroupLinks, kind: str) -> list[Line]:
    """Recursive halving and doubling: r (ceil(log2 k) l + (k - 1) / k n / min(B, E)), r as in
    `_ring`; k a power of two only. Of w ranks on each of b blocks, all send (b - 1) / b n out of
    theirs: r w (b - 1) / b n / U."""
    if links.size & (links.size - 1):
        return []
    rounds = 2 if kind == "all_reduce" else 1
    share = rounds * (links.size - 1) / links.size / min(links.pairs, links.node)
    out = [rounds * b.width * (b.num_blocks - 1) / b.num_blocks / b.rate for b in links.blocks]
    hops = rounds * math.log2(links.size)
    above = rounds * _doublings(links)
    return [
        (
            protocol.base_latency + hops * _worst_hop(cluster, links, protocol) + above,
            max(share, *out, 0.0) / protocol.bandwidth_share,
        )
        for protocol in cluster.library.of("halving_doubling")
    ]


def _hierarchical(cluster: Cluster, links: GroupLinks, kind: str) -> list[Line]:
    """Reduce-scatter inside, all-reduce between nodes, all-gather inside, one after the other: 2
    (w - 1) l_i + 2 (N - 1) l_e + 2 (w - 1) / w n / B + 2 (N - 1) / N n / E; only for an all-reduce
    over several nodes."""
    if kind != "all_reduce" or links.num_nodes == 1 or links.size != links.width * links.num_nodes:
        return []
    inside = 2 * (links.width - 1) / links.width / links.ring if links.width > 1 else 0.0
    outside = 2 * (links.num_nodes - 1) / links.num_nodes / _once(links)
    above = 2 * sum((block.num_blocks - 1) * block.latency for block in links.blocks)
    lines = []
    for protocol in cluster.library.of("hierarchical"):
        latency = 2 * (links.num_nodes - 1) * _inter_hop(cluster, protocol) + above
        latency += 2 * (links.width - 1) * protocol.hop(links.hop) if links.width > 1 else 0.0
        lines.append(
            (protocol.base_latency + latency, (inside + outside) / protocol.bandwidth_share)
        )
    return lines


def _nvls(cluster: Cluster, links: GroupLinks, kind: str) -> list[Line]:
    """Reduction in the NVSwitch, one node: l + n (1 + 1 / k) / B_s: each rank's port carries the
    buffer once, and another k-th of it.

    B_s is the link's bandwidth times `in_switch_reduction_efficiency`; NCCL uses this from three
    ranks on.
    """
    if kind != "all_reduce" or links.num_nodes > 1 or not links.in_switch or links.size < 3:
        return []
    per_byte = (1 + 1 / links.size) / links.in_switch
    return [
        (protocol.base_latency + protocol.hop(links.hop), per_byte / protocol.bandwidth_share)
        for protocol in cluster.library.of("nvls")
    ]


def _all_to_all(cluster: Cluster, links: GroupLinks) -> list[Line]:
    """Pairwise sends at once: (k - 1) l + max((w - 1) / k n / B_pairs, w (k - w) / k n / E) + n
    p; n is a rank's buffer. Blocks as nodes, with their own w and U."""
    inside = (links.width - 1) / links.size / links.pairs
    edges = [(links.width, links.node), *((b.width, b.rate) for b in links.blocks)]
    outside = (w * (links.size - w) / links.size / rate for w, rate in edges)
    per_byte = max(inside, *outside) + links.pass_time
    above = sum((links.size - block.width) * block.latency for block in links.blocks)
    return [
        (
            protocol.base_latency + (links.size - 1) * _worst_hop(cluster, links, protocol) + above,
            per_byte / protocol.bandwidth_share,
        )
        for protocol in cluster.library.of("pairwise")
    ]


def _inter_hop(cluster: Cluster, protocol: Protocol) -> float:
    assert cluster.inter is not None
    return protocol.hop(cluster.inter.link)


def _worst_hop(cluster: Cluster, links: GroupLinks, protocol: Protocol) -> float:
    return _inter_hop(cluster, protocol) if links.num_nodes > 1 else protocol.hop(links.hop)


def fastest_lines(cluster: Cluster, links: GroupLinks, kind: str) -> tuple[Line, ...]:
    """All lines for one kind of group, with the fabric's overhead per call, without those that are
    never the fastest."""
    algorithms = (_ring, _tree, _halving_doubling, _hierarchical, _nvls)
    lines = (
        _all_to_all(cluster, links)
        if kind == "all_to_all"
        else [x for f in algorithms for x in f(cluster, links, kind)]
    )
    overhead = cluster.intra.overhead if links.width > 1 else 0.0
    if links.num_nodes > 1 and cluster.inter is not None:
        overhead += cluster.inter.overhead
    if not lines:
        raise BadValue(
            f"library {cluster.library.name!r} has no algorithm for {kind} over {links.size} devices"
        )
    kept: list[Line] = []
    for latency, per_byte in sorted(lines):
        if not kept or per_byte < kept[-1][1]:
            kept.append((latency + overhead, per_byte))
    return tuple(kept)
