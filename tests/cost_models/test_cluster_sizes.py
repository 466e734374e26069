"""Sizes of clusters, where their devices are, and their graphs."""

from __future__ import annotations

import networkx as nx
import pytest

from cost_models.cluster import load_cluster
from cost_models.errors import BadValue
from cost_models.hardware_toml import list_clusters
from cost_models.placement import place
from cost_models.topology import build_graph


@pytest.mark.parametrize(
    ("devices", "nodes", "expected"),
    [
        (None, None, (8, 1, 8)),
        (1, None, (1, 1, 1)),
        (3, None, (3, 1, 3)),
        (8, None, (8, 1, 8)),
        (9, None, (9, 2, 5)),
        (12, None, (12, 2, 6)),
        (15, None, (15, 2, 8)),
        (64, None, (64, 8, 8)),
        (None, 2, (16, 2, 8)),
        (8, 2, (8, 2, 4)),
        (9, 2, (9, 2, 5)),
        (15, 2, (15, 2, 8)),
    ],
)
def test_sizes(devices: int | None, nodes: int | None, expected: tuple[int, int, int]) -> None:
    cluster = load_cluster("dgx-h100", num_devices=devices, num_nodes=nodes)
    assert (cluster.num_devices, cluster.num_nodes, cluster.node_width) == expected


@pytest.mark.parametrize(
    ("devices", "nodes", "message"),
    [
        (0, None, "number of devices must be a whole number of at least 1, got 0"),
        (-1, None, "got -1"),
        (1.5, None, "got 1.5"),
        (None, 0, "number of nodes must be a whole number of at least 1, got 0"),
        (16385, None, r"'dgx-h100' has at most 16384 devices, but 16385 devices were asked for"),
        (
            None,
            2049,
            "'dgx-h100' has at most 2048 nodes of 8 devices, but 2049 nodes were asked for",
        ),
        (
            17,
            2,
            "2 nodes of 'dgx-h100' have 16 devices, but 17 were asked for: take 3 nodes or more",
        ),
        (9, 8, "9 devices, 2 per node, leave some of 8 nodes of 'dgx-h100' empty: take 5 nodes"),
    ],
)
def test_impossible_sizes(devices: int, nodes: int, message: str) -> None:
    with pytest.raises(BadValue, match=message):
        load_cluster("dgx-h100", num_devices=devices, num_nodes=nodes)


@pytest.mark.parametrize(
    ("devices", "nodes", "width"),
    [(64, 1, 64), (72, 1, 72), (73, 2, 37), (576, 8, 72), (512, 8, 64), (16384, 256, 64)],
)
def test_domains_of_72_are_filled_alike_if_few_devices_are_spared(
    devices: int, nodes: int, width: int
) -> None:
    cluster = load_cluster("gb200-nvl72", num_devices=devices)
    assert (cluster.num_nodes, cluster.node_width) == (nodes, width)


def test_the_graph_of_pods() -> None:
    """Two pods of 384 nodes: the way from one to the other passes the narrow links."""
    graph = build_graph(load_cluster("h100-roce-24k", num_devices=772, num_nodes=386))
    path = nx.shortest_path(graph, "device0", "device770")
    assert path[2:5] == ["rack0", "pod0", "fabric"]
    assert graph.edges["pod0", "fabric"]["bandwidth"] == pytest.approx(384 * 8 * 50e9 / 7)


def test_nodes_of_eight_are_never_spared() -> None:
    for name in ("dgx-h100", "p3.16xlarge", "cpu"):
        full = load_cluster(name)
        for devices in range(1, min(1025, full.devices_per_node * full.max_nodes + 1)):
            assert place(full, devices, None)[1] == -(-devices // full.devices_per_node)


@pytest.mark.parametrize("name", list_clusters())
@pytest.mark.parametrize("num_nodes", [1, 2])
def test_graphs_are_connected_and_labelled(name: str, num_nodes: int) -> None:
    graph = build_graph(load_cluster(name, num_nodes=num_nodes))
    assert nx.is_strongly_connected(graph)
    assert all(
        data["bandwidth"] > 0 and data["latency"] > 0 and data["kind"]
        for _, _, data in graph.edges(data=True)
    )
    assert {data["kind"] for _, data in graph.nodes(data=True)} <= {
        "device",
        "switch",
        "host",
        "nic",
        "block",
        "fabric",
    }


def test_the_graph_of_two_nodes_of_dgx_h100() -> None:
    graph = build_graph(load_cluster("dgx-h100", num_nodes=2))
    kinds = [data["kind"] for _, data in graph.nodes(data=True)]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "device": 16,
        "switch": 2,
        "nic": 16,
        "fabric": 1,
    }
    assert graph.edges["device8", "node1/switch"]["bandwidth"] == 450e9
    assert graph.edges["node1/nic0", "fabric"]["bandwidth"] == 50e9
    assert nx.shortest_path_length(graph, "device0", "device8") == 4


def test_every_v100_has_six_bricks() -> None:
    intra = load_cluster("p3.16xlarge").intra
    assert [sum(intra.bricks(a, b) for b in range(8) if a != b) for a in range(8)] == [6] * 8


def test_nics_next_to_devices() -> None:
    dgx, p3 = load_cluster("dgx-h100"), load_cluster("p3.16xlarge")
    assert [dgx.nic_of(i) for i in range(8)] == [(i,) for i in range(8)]
    assert [p3.nic_of(i) for i in range(8)] == [(0,)] * 8


@pytest.mark.parametrize("devices", range(1, 70))
def test_a_placed_cluster_is_placed_the_same_again(devices: int) -> None:
    cluster = load_cluster("dgx-h100", num_devices=devices)
    assert place(cluster, devices, cluster.num_nodes) == (
        devices,
        cluster.num_nodes,
        cluster.node_width,
    )
