"""The links that the groups of a collective cross: for each different kind of group, its ranks per
node and bytes/s per rank.

The mesh is laid on devices 0..P-1 in row-major order (last axis fastest); a group of `axes` is the
ranks that differ only on these. All groups work at the same time, so they share the links that
several of them cross: NICs, the host's bus, the links out of a block of nodes.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from cost_models.errors import BadValue
from cost_models.group_cells import Cells, Groups, Ints, groups_of, unique_rows
from cost_models.machine import Cluster, Level, device_name
from cost_models.rings import num_chains, num_rings

__all__ = ["BlockLinks", "GroupLinks", "LinkClass", "group_links", "link_class"]

#: The links that limit a collective's rate: those inside nodes, or the NICs and switches between
#: nodes. Collectives over different classes run beside each other at full rate.
LinkClass = Literal["node", "network"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BlockLinks:
    """The links of a group out of the blocks of one level of the network: the group is on
    `num_blocks` blocks, with at most `width` ranks on each; all of them together send `rate`
    bytes/s out of a block. A message that leaves a block takes `latency` seconds more."""

    num_blocks: int
    width: int
    rate: float
    latency: float


@dataclass(frozen=True, slots=True)
class GroupLinks:
    """One kind of group. Bandwidths are bytes/s, after the fabric's efficiency; `inf` if the group
    has no such hop.

    `ring`, `tree`: a rank's rate inside its node along a ring, and along a tree, in which up and
    down share its port. `node`: the rate of all the group's members on one node together through
    its NICs. `pairs`: a rank's rate when it sends to all others at once. `pass_time`: seconds per
    byte of one pass of a rank over its own buffer. `blocks`: the levels above the nodes that slow
    the group down.
    """

    size: int
    num_nodes: int
    width: int
    hop: str
    ring: float
    tree: float
    pairs: float
    node: float
    in_switch: float
    pass_time: float
    blocks: tuple[BlockLinks, ...] = ()


def group_links(
    cluster: Cluster, mesh_sizes: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[GroupLinks, ...]:
    """The different kinds of groups of `axes`; empty if the groups have one member. Raises
    `BadValue` if the mesh has more devices than the cluster."""
    if math.prod(mesh_sizes) > cluster.num_devices:
        shape = " x ".join(map(str, mesh_sizes))
        raise BadValue(
            f"a mesh of {shape} does not fit on the {cluster.num_devices} devices of {cluster.name!r}"
        )
    levels = cluster.narrow_levels
    width = cluster.node_width * (levels[-1].nodes if levels else 1)
    groups = groups_of(mesh_sizes, axes, width=width, first=cluster.first)
    if len(groups.steps) == 1:
        return ()
    cells = groups.cells(cluster.node_width)
    inside = [cells.least(column) for column in _cell_rates(cluster, cells)]
    counts = cells.most(cells.count)
    blocks = [_block_rates(cluster, level, groups) for level in levels]
    flat = [*inside, counts.astype(float), *(column for pair in blocks for column in pair)]
    examples, _ = unique_rows([*flat, groups.phases.astype(float)])
    return tuple(dict.fromkeys(_made(cluster, groups, flat, np.sort(examples))))


def _made(
    cluster: Cluster, groups: Groups, columns: list[Floats], examples: Ints
) -> list[GroupLinks]:
    """The records of some groups. `columns` are, for each group: ring, tree, pairs and node rate,
    width, and of each level the rate out of a block and the ranks on one."""
    intra, levels = cluster.intra, cluster.narrow_levels
    nodes = groups.num_units(examples, cluster.node_width)
    blocks = [groups.num_units(examples, cluster.node_width * level.nodes) for level in levels]
    reduction = intra.in_switch_reduction_efficiency
    out = []
    for at, group in enumerate(examples.tolist()):
        ring, tree, pairs, node, width, *above = (float(column[group]) for column in columns)
        out.append(
            GroupLinks(
                size=len(groups.steps),
                num_nodes=int(nodes[at]),
                width=int(width),
                hop=intra.link,
                ring=ring,
                tree=tree,
                pairs=pairs,
                node=node,
                in_switch=intra.bandwidth * reduction if reduction is not None else 0.0,
                pass_time=1.0 / intra.pass_bandwidth if intra.pass_bandwidth is not None else 0.0,
                blocks=tuple(
                    BlockLinks(int(count[at]), int(above[2 * i + 1]), above[2 * i], level.latency)
                    for i, (level, count) in enumerate(zip(levels, blocks, strict=True))
                    if count[at] > 1
                ),
            )
        )
    return out


def link_class(groups: tuple[GroupLinks, ...]) -> LinkClass:
    """The class of links that a collective of these groups shares with others: `node` if all groups
    are inside a node, else `network`."""
    return "network" if any(links.num_nodes > 1 for links in groups) else "node"


def _cell_rates(cluster: Cluster, cells: Cells) -> list[Floats]:
    """(ring, tree, pairs, node) of every cell; cells of one kind are computed once."""
    users = _nic_users(cluster, cells)
    _, sharing = unique_rows(list(users.T)) if users.size else (None, cells.active * 0)
    spans = cells.spans
    columns = [cells.pattern, cells.active[cells.unit], sharing[cells.unit], spans.astype(np.int64)]
    examples, kind = unique_rows(columns)
    rates = [
        (
            *_inside(cluster, cells.patterns[cells.pattern[c]], int(columns[1][c]), bool(spans[c])),
            _through_nics(cluster, cells.patterns[cells.pattern[c]], users[cells.unit[c]])
            if spans[c]
            else math.inf,
        )
        for c in examples
    ]
    return list(np.array(rates, float)[kind].T)


def _nic_users(cluster: Cluster, cells: Cells) -> Ints:
    """[node, NIC] -> number of groups that cross it."""
    nodes, kinds = len(cells.active), len(cells.patterns)
    if cluster.inter is None:
        return np.zeros((nodes, 0), np.int64)
    crossing = (cells.unit * kinds + cells.pattern)[cells.spans]
    num = np.bincount(crossing, minlength=nodes * kinds).reshape(nodes, kinds)
    near = np.zeros((kinds, cluster.inter.nics_per_node), np.int64)
    for kind, local in enumerate(cells.patterns):
        near[kind, sorted(_nics(cluster, local))] = 1
    return num @ near


def _nics(cluster: Cluster, local: tuple[int, ...]) -> set[int]:
    return {nic for index in local for nic in cluster.nic_of(index)}


def _through_nics(cluster: Cluster, local: tuple[int, ...], users: Ints) -> float:
    """Bytes/s of a group through the NICs next to its members; each NIC is shared by the groups
    that cross it."""
    inter = cluster.inter
    assert inter is not None
    return sum(
        inter.bandwidth * inter.efficiency / int(users[nic]) for nic in _nics(cluster, local)
    )


def _block_rates(cluster: Cluster, level: Level, groups: Groups) -> tuple[Floats, Floats]:
    """(rate out of a block, ranks on a block) of every group. The links out of a block carry what
    the NICs of those of its nodes that the mesh uses do, by the oversubscription: others may use
    the rest. The groups that leave the block share them."""
    inter = cluster.inter
    assert inter is not None
    cells = groups.cells(cluster.node_width * level.nodes)
    leaving = np.bincount(cells.unit[cells.spans], minlength=len(cells.active))
    places = np.unique(groups.ranks // cluster.node_width) // level.nodes
    nodes = np.bincount(places, minlength=len(cells.active))
    rate = inter.nics_per_node * inter.bandwidth * inter.efficiency / level.oversubscription
    out = np.where(leaving > 0, nodes * rate / np.maximum(leaving, 1), math.inf)
    return cells.least(out[cells.unit]), cells.most(cells.count).astype(float)


def _inside(
    cluster: Cluster, local: tuple[int, ...], active: int, spans: bool
) -> tuple[float, float, float]:
    """(ring, tree, pairs): bytes/s of a member inside one node, `active` ranks of which
    communicate at the same time."""
    intra = cluster.intra
    if len(local) == 1:
        return math.inf, math.inf, math.inf
    if intra.fabric == "mesh":
        return _inside_mesh(cluster, local, active, spans)
    port = intra.bandwidth * intra.efficiency
    if intra.shared_bandwidth is not None:
        port = min(port, intra.shared_bandwidth / active)
    return port, port / 2, port


def _inside_mesh(
    cluster: Cluster, local: tuple[int, ...], active: int, spans: bool
) -> tuple[float, float, float]:
    """`_inside` over direct links. A ring takes a brick per hop (a chain of one brick suffices if
    the ring goes on through the NICs); a tree takes one brick per link, up and down in its two
    directions; if there is neither, everything goes over the host."""
    intra = cluster.intra
    brick, host = intra.bandwidth * intra.efficiency, intra.host_bandwidth or 0.0
    chains, rings = num_chains(intra, local), num_rings(intra, local)
    if spans:
        rings = max(rings, chains)
    ring = rings * brick if rings else host
    tree = max(1, rings // 2) * brick if chains else host / 2
    return ring, tree, _pairs_on_graph(cluster, local) * intra.efficiency


def _pairs_on_graph(cluster: Cluster, local: tuple[int, ...]) -> float:
    """A member's bytes/s when all send to all over shortest paths: the slowest link's bandwidth
    by its number of flows."""
    graph = _node_graph(cluster, local)
    names = [device_name(index) for index in local]
    flows: Counter[tuple[str, str]] = Counter()
    for source in names:
        for target in names:
            if source != target:
                path = nx.shortest_path(graph, source, target)
                flows.update(itertools.pairwise(path))
    slowest = min(graph.edges[edge]["bandwidth"] / count for edge, count in flows.items())
    return float(slowest) * (len(local) - 1)


def _node_graph(cluster: Cluster, local: tuple[int, ...]) -> nx.DiGraph:
    """The members' direct links, and the host between those that have none."""
    graph, host = nx.DiGraph(), cluster.intra.host_bandwidth or 0.0
    for a in local:
        graph.add_edge(device_name(a), "host", bandwidth=host)
        graph.add_edge("host", device_name(a), bandwidth=host)
        for b in local:
            bricks = cluster.intra.bricks(a, b) if a != b else 0
            if bricks:
                graph.add_edge(
                    device_name(a), device_name(b), bandwidth=bricks * cluster.intra.bandwidth
                )
    return graph
