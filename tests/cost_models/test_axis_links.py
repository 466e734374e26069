"""What an axis runs over, in words, and what a collective over it costs in each order of the
axes: by hand."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from cost_models.axis_links import axis_links, links_in_words
from cost_models.cluster import load_cluster
from cost_models.collectives import collective_time
from cost_models.group_links import group_links
from cost_models.machine import Cluster


@pytest.fixture(scope="module")
def eight_nodes() -> Cluster:
    return load_cluster("dgx-h100", num_devices=64)


def words(cluster: Cluster, names: tuple[str, ...], sizes: tuple[int, ...]) -> str:
    return links_in_words(map(asdict, axis_links(cluster, names, sizes)))


def test_in_words(eight_nodes: Cluster) -> None:
    assert (
        words(eight_nodes, ("dp", "tp"), (8, 8))
        == "tp=8 inside a node over NVLink; dp=8 between nodes over InfiniBand"
    )
    assert words(eight_nodes, ("tp", "dp"), (4, 16)) == (
        "tp=4 between nodes over InfiniBand; dp=16 inside and between nodes (2 nodes, 8 devices "
        "on each) over NVLink and InfiniBand"
    )
    assert words(eight_nodes, ("dp1", "dp2", "tp"), (4, 2, 8)).startswith(
        "tp=8 inside a node over NVLink; dp1=4 between nodes"
    )
    assert (
        words(load_cluster("cpu", num_devices=2), ("dp",), (2,))
        == "dp=2 inside a node over shared memory"
    )
    assert words(eight_nodes, ("dp", "none"), (64, 1)).startswith(
        "dp=64 inside and between nodes (8 nodes, 8 devices on each)"
    )
    assert words(load_cluster("cpu", num_devices=1), ("dp",), (1,)) == ""


def test_links_of_the_two_orders_by_hand(eight_nodes: Cluster) -> None:
    """Four groups of a node that cross it share its eight NICs; a group with all eight devices
    of a node has them to itself."""
    inter, intra = eight_nodes.inter, eight_nodes.intra
    assert inter is not None and inter.nics_per_node == 8
    nic, port = inter.bandwidth * inter.efficiency, intra.bandwidth * intra.efficiency
    cases = {
        ((4, 16), 0): (1, 4, nic),  # stride 16: one device of each of four nodes, its own NIC
        ((4, 16), 1): (8, 2, 8 * nic),  # 16 in a row: two whole nodes
        ((16, 4), 0): (2, 8, 2 * nic),  # stride 4: two devices of each node
        ((16, 4), 1): (4, 1, float("inf")),  # four in a row
    }
    for (sizes, axis), (width, num_nodes, through) in cases.items():
        (links,) = group_links(eight_nodes, sizes, (axis,))
        assert (links.width, links.num_nodes) == (width, num_nodes)
        assert links.node == pytest.approx(through)
        assert links.ring == (port if width > 1 else float("inf"))


def test_bytes_of_a_large_collective_in_the_two_orders_by_hand(eight_nodes: Cluster) -> None:
    """A ring all-gather of n bytes takes (k - 1) / k n over the slower of a device's port and
    its share of the node's NICs (MODELLING 5.1): what the tensor axis gains inside a node the
    data axis loses between nodes."""
    inter, intra = eight_nodes.inter, eight_nodes.intra
    assert inter is not None
    nic, port = inter.bandwidth * inter.efficiency, intra.bandwidth * intra.efficiency
    nbytes = 2.0**36
    share = max(protocol.bandwidth_share for protocol in eight_nodes.library.protocols)
    for sizes, axis, rate in (
        ((4, 16), 0, nic),
        ((4, 16), 1, min(port, 8 * nic)),
        ((16, 4), 0, min(port, 2 * nic)),
        ((16, 4), 1, port),
    ):
        k = sizes[axis]
        seconds = collective_time(eight_nodes, sizes, (axis,), "all_gather", nbytes)
        assert seconds == pytest.approx((k - 1) / k * nbytes / rate / share, rel=1e-2)
