"""The links that the groups of a collective cross: for each different kind of group, its ranks per
node and bytes/s per rank.

The mesh is laid on devices 0..P-1 in row-major order (last axis fastest); a group of `axes` is the
ranks that differ only on these. All groups work at the same time, so they share the links that
several of them cross: NICs, the host's bus.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import networkx as nx

from cost_models.errors import BadValue
from cost_models.machine import Cluster, device_name
from cost_models.rings import num_chains, num_rings

__all__ = ["GroupLinks", "LinkClass", "find_groups", "group_links", "link_class"]

#: The links that limit a collective's rate: those inside nodes, or the NICs and switches between
#: nodes. Collectives over different classes run beside each other at full rate.
LinkClass = Literal["node", "network"]


@dataclass(frozen=True, slots=True)
class GroupLinks:
    """One kind of group. Bandwidths are bytes/s, after the fabric's efficiency; `inf` if the group
    has no such hop.

    `ring`, `tree`: a rank's rate inside its node along a ring, and along a tree, in which up and
    down share its port. `node`: the rate of all the group's members on one node together through
    its NICs. `pairs`: a rank's rate when it sends to all others at once. `pass_time`: seconds per
    byte of one pass of a rank over its own buffer.
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


def find_groups(mesh_sizes: tuple[int, ...], axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The groups of ranks that differ only on `axes`, each in mesh order."""
    if not set(axes) <= set(range(len(mesh_sizes))):
        raise BadValue(f"axes {axes} are not axes of a mesh of {len(mesh_sizes)} axes")
    found: dict[tuple[int, ...], list[int]] = {}
    for rank in range(math.prod(mesh_sizes)):
        place, rest = [], rank
        for size in reversed(mesh_sizes):
            rest, position = divmod(rest, size)
            place.append(position)
        key = tuple(p for axis, p in enumerate(reversed(place)) if axis not in axes)
        found.setdefault(key, []).append(rank)
    return [tuple(group) for group in found.values()]


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
    groups = [group for group in find_groups(mesh_sizes, axes) if len(group) > 1]
    nic_users = _nic_users(cluster, groups)
    active = Counter(cluster.node_of(rank) for group in groups for rank in group)
    kinds = {_signature(cluster, group, active, nic_users): group for group in groups}
    return tuple({_links(cluster, group, active, nic_users): None for group in kinds.values()})


def link_class(groups: tuple[GroupLinks, ...]) -> LinkClass:
    """The class of links that a collective of these groups shares with others: `node` if all groups
    are inside a node, else `network`."""
    return "network" if any(links.num_nodes > 1 for links in groups) else "node"


def _members(cluster: Cluster, group: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """node -> local indices of the group's ranks there."""
    out: dict[int, tuple[int, ...]] = {}
    for rank in group:
        node = cluster.node_of(rank)
        out[node] = (*out.get(node, ()), cluster.local_index(rank))
    return out


def _nic_users(cluster: Cluster, groups: list[tuple[int, ...]]) -> Counter[tuple[int, int]]:
    """(node, NIC) -> number of groups that cross it."""
    users: Counter[tuple[int, int]] = Counter()
    for group in groups:
        members = _members(cluster, group)
        if len(members) > 1:
            users.update(
                {(node, nic) for node, local in members.items() for nic in _nics(cluster, local)}
            )
    return users


def _nics(cluster: Cluster, local: tuple[int, ...]) -> set[int]:
    return {nic for index in local for nic in cluster.nic_of(index)}


def _signature(
    cluster: Cluster, group: tuple[int, ...], active: Counter[int], users: Counter[tuple[int, int]]
) -> tuple[object, ...]:
    """A key that determines a group's links: its places in each node, and how many groups share
    them. Groups with one key are computed once."""
    members = _members(cluster, group)
    shared = len(members) > 1
    return tuple(
        sorted(
            (
                local,
                active[node],
                tuple(sorted(users[node, nic] for nic in _nics(cluster, local))) if shared else (),
            )
            for node, local in members.items()
        )
    )


def _links(
    cluster: Cluster, group: tuple[int, ...], active: Counter[int], users: Counter[tuple[int, int]]
) -> GroupLinks:
    members = _members(cluster, group)
    intra, width = cluster.intra, max(len(local) for local in members.values())
    inside = [
        _inside(cluster, local, active[node], len(members) > 1) for node, local in members.items()
    ]
    through = math.inf
    if len(members) > 1:
        through = min(_through_nics(cluster, node, local, users) for node, local in members.items())
    reduction = intra.in_switch_reduction_efficiency
    return GroupLinks(
        size=len(group),
        num_nodes=len(members),
        width=width,
        hop=intra.link,
        ring=min(ring for ring, _, _ in inside),
        tree=min(tree for _, tree, _ in inside),
        pairs=min(pairs for _, _, pairs in inside),
        node=through,
        in_switch=intra.bandwidth * reduction if reduction is not None else 0.0,
        pass_time=1.0 / intra.pass_bandwidth if intra.pass_bandwidth is not None else 0.0,
    )


def _through_nics(
    cluster: Cluster, node: int, local: tuple[int, ...], users: Counter[tuple[int, int]]
) -> float:
    """Bytes/s of a group through the NICs next to its members; each NIC is shared by the groups
    that cross it."""
    inter = cluster.inter
    assert inter is not None
    return sum(
        inter.bandwidth * inter.efficiency / users[node, nic] for nic in _nics(cluster, local)
    )


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
