"""The networkx graph of a cluster: devices, switches or hosts, NICs, blocks of nodes and the
fabric, with the links between them. For looking at small clusters: costs never build it."""

from __future__ import annotations

import networkx as nx

from cost_models.machine import Cluster, Link, device_name

__all__ = ["build_graph"]


def build_graph(cluster: Cluster) -> nx.DiGraph:
    """The used devices, switches, NICs and the fabric as a directed graph.

    Nodes carry `kind` (`device`, `switch`, `host`, `nic`, `block`, `fabric`) and `node`; edges `bandwidth`
    (bytes/s in that direction), `latency` (seconds, of the library's fastest protocol),
    `kind` and the `Link` itself as `link`.
    """
    graph = nx.DiGraph(name=cluster.name)
    for rank in range(cluster.num_devices):
        graph.add_node(device_name(rank), kind="device", node=cluster.node_of(rank), rank=rank)
    for node in range(cluster.num_nodes):
        _add_node_fabric(graph, cluster, node)
    if cluster.inter is not None and cluster.num_nodes > 1:
        graph.add_node("fabric", kind="fabric", node=-1)
        for node in range(cluster.num_nodes):
            _add_nics(graph, cluster, node)
        _add_blocks(graph, cluster)
    return graph


def _connect(
    graph: nx.DiGraph, cluster: Cluster, a: str, b: str, bandwidth: float, kind: str
) -> None:
    """Adds both directions of a link."""
    latency = min(
        seconds
        for protocol in cluster.library.protocols
        for name, seconds in protocol.hop_latency
        if name == kind
    )
    for source, target in ((a, b), (b, a)):
        link = Link(source=source, target=target, bandwidth=bandwidth, latency=latency, kind=kind)
        graph.add_edge(
            source,
            target,
            bandwidth=link.bandwidth,
            latency=link.latency,
            kind=link.kind,
            link=link,
        )


def _add_node_fabric(graph: nx.DiGraph, cluster: Cluster, node: int) -> None:
    intra, ranks = cluster.intra, cluster.ranks_of(node)
    if intra.fabric == "mesh":
        for a in ranks:
            for b in ranks:
                bricks = intra.bricks(cluster.local_index(a), cluster.local_index(b))
                if a < b and bricks:
                    _connect(
                        graph,
                        cluster,
                        device_name(a),
                        device_name(b),
                        bricks * intra.bandwidth,
                        intra.link,
                    )
        _add_hub(graph, cluster, node, "host", intra.host_bandwidth or 0.0, "pcie")
    else:
        _add_hub(graph, cluster, node, intra.fabric, intra.bandwidth, intra.link)


def _add_hub(
    graph: nx.DiGraph, cluster: Cluster, node: int, kind: str, bandwidth: float, link: str
) -> None:
    """Adds a switch or host, with every device of the node linked to it."""
    hub = f"node{node}/{kind}"
    graph.add_node(hub, kind=kind, node=node)
    for rank in cluster.ranks_of(node):
        _connect(graph, cluster, device_name(rank), hub, bandwidth, link)


def _add_nics(graph: nx.DiGraph, cluster: Cluster, node: int) -> None:
    """Adds the node's NICs, each linked to the fabric and to the devices nearest to it."""
    inter = cluster.inter
    assert inter is not None
    for nic in range(inter.nics_per_node):
        name = f"node{node}/nic{nic}"
        graph.add_node(name, kind="nic", node=node)
        _connect(graph, cluster, name, _above(cluster, node, 0), inter.bandwidth, inter.link)
        for rank in cluster.ranks_of(node):
            if nic in cluster.nic_of(cluster.local_index(rank)):
                _connect(graph, cluster, device_name(rank), name, inter.bandwidth, "pcie")


def _above(cluster: Cluster, node: int, index: int) -> str:
    """The block of level `index` that a node is in, or the fabric above all levels."""
    levels = cluster.narrow_levels
    return f"{levels[index].name}{node // levels[index].nodes}" if index < len(levels) else "fabric"


def _add_blocks(graph: nx.DiGraph, cluster: Cluster) -> None:
    """Adds the blocks of the levels that slow messages down, each linked to the one around it by
    what the NICs of its nodes move, by the oversubscription."""
    inter = cluster.inter
    assert inter is not None
    for index, level in enumerate(cluster.narrow_levels):
        for first in range(0, cluster.num_nodes, level.nodes):
            name = _above(cluster, first, index)
            graph.add_node(name, kind="block", node=-1)
            nodes = min(level.nodes, cluster.num_nodes - first)
            rate = nodes * inter.nics_per_node * inter.bandwidth / level.oversubscription
            _connect(graph, cluster, name, _above(cluster, first, index + 1), rate, inter.link)
