"""Seconds of a collective on the links that its groups really cross: the best algorithm and
protocol for each size.

Every algorithm and protocol is a line a + b n in the bytes n of the whole logical buffer (as
counted by nccl-tests). The fastest line counts, and of the groups the slowest, since all groups of
an axis run together. Symbols: k ranks on N nodes, w per node, B a rank's bytes/s along the ring
inside a node, E the group's bytes/s through a node's NICs, l a hop's latency (l_i inside, l_e
between nodes). Source: MODELLING 5.1; Thakur et al., "Optimization of Collective Communication
Operations in MPICH", 2005; NCCL src/graph/tuning.cc for the latencies.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import overload

import numpy as np
from numpy.typing import NDArray

from cost_models.collective_table import MeasuredTable, measured_tables
from cost_models.errors import BadValue, unknown_name
from cost_models.group_links import GroupLinks, group_links, link_class
from cost_models.library import COLLECTIVES, Protocol
from cost_models.machine import Cluster

__all__ = ["COLLECTIVES", "CollectiveModel", "collective_model", "collective_time"]

Line = tuple[float, float]


def _hops(cluster: Cluster, links: GroupLinks, protocol: Protocol, rounds: int) -> float:
    """Latency of `rounds` trips over the ring's k - 1 hops, N - 1 of them between nodes: rounds
    ((k - N) l_i + (N - 1) l_e)."""
    outside = links.num_nodes - 1
    inside = links.size - links.num_nodes
    seconds = inside * protocol.hop(links.hop) if inside else 0.0
    if outside:
        assert cluster.inter is not None
        seconds += outside * protocol.hop(cluster.inter.link)
    return rounds * seconds


def _ring(cluster: Cluster, links: GroupLinks, kind: str) -> list[Line]:
    """Ring: r ((k - 1) l + (k - 1) / k n / min(B, E) + n p / 2), with r = 2 for an all-reduce
    and 1 for an all-gather or reduce-scatter, and p the seconds per byte of a rank's pass over its
    buffer."""
    rounds = 2 if kind == "all_reduce" else 1
    share = rounds * (
        (links.size - 1) / links.size / min(links.ring, links.node) + links.pass_time / 2
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
    through = 0.0 if links.num_nodes == 1 else (1.0 if links.num_nodes == 2 else 2.0) / links.node
    per_byte = max(1.0 / links.tree, through)
    lines = []
    for protocol in cluster.library.of("tree"):
        inside = (links.width - 1) * protocol.hop(links.hop) if links.width > 1 else 0.0
        outside = (
            math.ceil(math.log2(links.num_nodes)) * _inter_hop(cluster, protocol)
            if links.num_nodes > 1
            else 0.0
        )
        lines.append(
            (protocol.base_latency + 2 * (inside + outside), per_byte / protocol.bandwidth_share)
        )
    return lines


def _halving_doubling(cluster: Cluster, links: GroupLinks, kind: str) -> list[Line]:
    """Recursive halving and doubling: r (ceil(log2 k) l + (k - 1) / k n / min(B, E)), r as in
    `_ring`; k a power of two only."""
    if links.size & (links.size - 1):
        return []
    rounds = 2 if kind == "all_reduce" else 1
    share = rounds * (links.size - 1) / links.size / min(links.pairs, links.node)
    hops = rounds * math.log2(links.size)
    return [
        (
            protocol.base_latency + hops * _worst_hop(cluster, links, protocol),
            share / protocol.bandwidth_share,
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
    outside = 2 * (links.num_nodes - 1) / links.num_nodes / links.node
    lines = []
    for protocol in cluster.library.of("hierarchical"):
        latency = 2 * (links.num_nodes - 1) * _inter_hop(cluster, protocol)
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
    p; n is a rank's buffer."""
    inside = (links.width - 1) / links.size / links.pairs
    outside = links.width * (links.size - links.width) / links.size / links.node
    per_byte = max(inside, outside) + links.pass_time
    return [
        (
            protocol.base_latency + (links.size - 1) * _worst_hop(cluster, links, protocol),
            per_byte / protocol.bandwidth_share,
        )
        for protocol in cluster.library.of("pairwise")
    ]


def _inter_hop(cluster: Cluster, protocol: Protocol) -> float:
    assert cluster.inter is not None
    return protocol.hop(cluster.inter.link)


def _worst_hop(cluster: Cluster, links: GroupLinks, protocol: Protocol) -> float:
    return _inter_hop(cluster, protocol) if links.num_nodes > 1 else protocol.hop(links.hop)


def _lines(cluster: Cluster, links: GroupLinks, kind: str) -> tuple[Line, ...]:
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


class CollectiveModel:
    """The seconds of every collective over `axes` of one mesh on one cluster; made by
    `collective_model`."""

    __slots__ = ("_lines", "_measured", "link_class", "links")

    def __init__(
        self, cluster: Cluster, mesh_sizes: tuple[int, ...], axes: tuple[int, ...]
    ) -> None:
        self.links: tuple[GroupLinks, ...] = group_links(cluster, mesh_sizes, axes)
        self.link_class = link_class(self.links)
        self._lines: dict[str, tuple[tuple[Line, ...], ...]] = {
            kind: tuple(_lines(cluster, links, kind) for links in self.links)
            for kind in COLLECTIVES[:-1]
        }
        num_groups = math.prod(size for axis, size in enumerate(mesh_sizes) if axis not in axes)
        local = all(links.num_nodes == 1 for links in self.links)
        self._measured: dict[str, MeasuredTable] = {}
        if self.links and local and cluster.collective_table:
            self._measured = measured_tables(
                cluster.collective_table, self.links[0].size, num_groups
            )

    @overload
    def time(self, kind: str, nbytes: float) -> float: ...
    @overload
    def time(self, kind: str, nbytes: NDArray[np.float64]) -> NDArray[np.float64]: ...
    def time(self, kind: str, nbytes: float | NDArray[np.float64]) -> float | NDArray[np.float64]:
        """Seconds of `kind` for `nbytes` of the whole logical buffer (all-to-all: of a rank's
        buffer), a number or an array.

        0 for a `slice`, for groups of one and for 0 bytes. Never falls with `nbytes`. If the
        cluster has a measured table for this kind and the groups stay inside a node, the table
        takes precedence. Raises `UnknownName` for other kinds.
        """
        if kind not in COLLECTIVES:
            raise unknown_name("collective", kind, COLLECTIVES)
        silent = kind == "slice" or not self.links
        if isinstance(nbytes, np.ndarray):
            return np.zeros(nbytes.shape) if silent else self._array_time(kind, nbytes)
        if silent or nbytes <= 0:
            return 0.0
        table = self._measured.get(kind)
        if table is not None:
            return float(table.time(nbytes))
        return max(min(a + b * nbytes for a, b in lines) for lines in self._lines[kind])

    def least_per_byte(self, kind: str, most: float) -> float:
        """The fewest seconds a byte of any message of `kind` of at most `most` bytes. A line a +
        b n costs fewer a byte the longer it is; between two points of a measured table the
        seconds a byte rise or fall, so one end has the fewest."""
        table = self._measured.get(kind)
        knots: list[float] = (
            [] if table is None else [n for n in np.exp(table.log_nbytes).tolist() if n < most]
        )
        return min(float(self.time(kind, n)) / n for n in (most, *knots))

    def _array_time(self, kind: str, nbytes: NDArray[np.float64]) -> NDArray[np.float64]:
        table = self._measured.get(kind)
        if table is not None:
            seconds = table.time(np.maximum(nbytes, 1.0))
        else:
            seconds = np.max(
                [np.min([a + b * nbytes for a, b in lines], axis=0) for lines in self._lines[kind]],
                axis=0,
            )
        return np.where(nbytes > 0, seconds, 0.0)


@lru_cache(maxsize=4096)
def collective_model(
    cluster: Cluster, mesh_sizes: tuple[int, ...], axes: tuple[int, ...]
) -> CollectiveModel:
    """The model of the collectives over `axes` of a mesh of `mesh_sizes` on the first devices of
    `cluster`.

    Cached by the whole record of the cluster (compared figure by figure, not by name), the mesh and
    the axes.
    """
    return CollectiveModel(cluster, mesh_sizes, axes)


def collective_time(
    cluster: Cluster, mesh_sizes: tuple[int, ...], axes: tuple[int, ...], kind: str, nbytes: float
) -> float:
    """Seconds of one collective of `kind` in all groups of `axes` at once; see
    `CollectiveModel.time`."""
    return collective_model(cluster, mesh_sizes, axes).time(kind, nbytes)
