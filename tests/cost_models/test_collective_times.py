"""Collectives by hand: every algorithm once, sharing of links, odd meshes, measured tables, the
cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.cluster import load_cluster
from cost_models.collectives import collective_model, collective_time
from cost_models.errors import BadHardware, BadValue, UnknownName
from cost_models.group_links import group_links
from cost_models.hardware_toml import list_clusters
from cost_models.library import COLLECTIVES, Library, Protocol
from cost_models.machine import Cluster, CollectiveRow, Level
from cost_models.rings import num_chains, num_rings

HOPS = (("nvlink", 1e-6), ("pcie", 2e-6), ("infiniband", 5e-6), ("ethernet", 9e-6))


def protocol(algorithm: str) -> Protocol:
    return Protocol(
        algorithm=algorithm, name="one", base_latency=1e-5, bandwidth_share=1.0, hop_latency=HOPS
    )


def round_cluster(
    *algorithms: str, devices: int = 8, nodes: int | None = None, name: str = "dgx-a100"
) -> Cluster:
    """8 devices a node at 100 GB/s, 8 NICs of 10 GB/s, 10 us a call, 1 us a hop inside and 5 us
    between nodes."""
    cluster = load_cluster(name, num_devices=devices, num_nodes=nodes)
    assert cluster.inter is not None
    protocols = tuple(
        protocol(algorithm) for algorithm in {"ring": 0, "pairwise": 0, **dict.fromkeys(algorithms)}
    )
    if algorithms and "ring" not in algorithms:
        slow = replace(protocols[0], base_latency=1.0)
        protocols = (slow, *protocols[1:])
    intra = replace(
        cluster.intra, bandwidth=100e9, efficiency=1.0, overhead=0.0, pass_bandwidth=None
    )
    inter = replace(cluster.inter, bandwidth=10e9, efficiency=1.0, overhead=0.0)
    return replace(
        cluster, library=Library(name="round", protocols=protocols), intra=intra, inter=inter
    )


N = 1e9


def seconds(
    cluster: Cluster, kind: str, mesh: tuple[int, ...] = (), axes: tuple[int, ...] = (0,)
) -> float:
    return collective_time(cluster, mesh or (cluster.num_devices,), axes, kind, N)


def test_ring_inside_a_node() -> None:
    cluster = round_cluster()
    assert seconds(cluster, "all_reduce") == pytest.approx(1e-5 + 14e-6 + 2 * 7 / 8 * N / 100e9)
    assert seconds(cluster, "all_gather") == pytest.approx(1e-5 + 7e-6 + 7 / 8 * N / 100e9)
    assert seconds(cluster, "reduce_scatter") == seconds(cluster, "all_gather")


def test_a_pass_over_the_buffer_adds_to_the_ring() -> None:
    cluster = round_cluster()
    slow = replace(cluster, intra=replace(cluster.intra, pass_bandwidth=200e9))
    assert seconds(slow, "all_reduce") - seconds(cluster, "all_reduce") == pytest.approx(N / 200e9)
    assert seconds(slow, "all_gather") - seconds(cluster, "all_gather") == pytest.approx(N / 400e9)


def test_a_ring_over_nodes_uses_all_nics() -> None:
    """16 devices on two nodes: 8 NICs of 10 GB/s carry a ring of 80 GB/s, 14 hops inside and one
    between nodes each way."""
    expected = 1e-5 + 2 * (14e-6 + 5e-6) + 2 * 15 / 16 * N / 80e9
    assert seconds(round_cluster(devices=16), "all_reduce") == pytest.approx(expected)


def pods(*algorithms: str) -> Cluster:
    """16 devices on eight nodes of two, in two pods of four nodes. A group over all nodes has one
    NIC of 10 GB/s in each, and of the 80 / 8 GB/s out of a pod the half that two groups share; a
    hop between pods takes 3 us more."""
    cluster = round_cluster(*algorithms, devices=16, nodes=8)
    assert cluster.inter is not None
    level = Level(name="pod", nodes=4, oversubscription=8 * 4 * 2, latency=3e-6)
    return replace(cluster, inter=replace(cluster.inter, levels=(level,)))


def test_groups_over_pods_share_the_links_out_of_them() -> None:
    """Each group of eight has 8 x 4 x 10 / 64 / 2 = 2.5 GB/s out of a pod. A ring leaves each pod
    once, a tree twice if there are more than two, all-to-all sends half of all to the other pod."""

    def taken(algorithm: str, kind: str) -> float:
        return seconds(pods(algorithm), kind, (8, 2), (0,))

    ring = 1e-5 + 7 * 5e-6 + 3e-6 + 7 / 8 * N / 2.5e9
    assert taken("ring", "all_gather") == pytest.approx(ring)
    assert taken("tree", "all_reduce") == pytest.approx(1e-5 + 2 * (15e-6 + 3e-6) + N / 2.5e9)
    halving = 1e-5 + 2 * (15e-6 + 3e-6) + 2 * 4 * N / 2 / 2.5e9
    assert taken("halving_doubling", "all_reduce") == pytest.approx(halving)
    between = 1e-5 + 2 * (35e-6 + 3e-6) + 2 * 7 / 8 * N / 2.5e9
    assert taken("hierarchical", "all_reduce") == pytest.approx(between)
    pairs = 1e-5 + 7 * 5e-6 + 4 * 3e-6 + 4 * 4 / 8 * N / 2.5e9
    assert taken("pairwise", "all_to_all") == pytest.approx(pairs)


def test_groups_inside_a_pod_do_not_see_its_edge() -> None:
    flat = replace(pods(), inter=round_cluster(devices=16, nodes=8).inter)
    for kind in ("all_gather", "all_reduce", "all_to_all"):
        assert seconds(pods(), kind, (2, 8), (1,)) == seconds(flat, kind, (2, 8), (1,))
        assert seconds(pods(), kind, (8, 2), (0,)) > seconds(flat, kind, (8, 2), (0,))


def test_groups_on_the_same_nic_share_it() -> None:
    """p3.16xlarge has one NIC: eight groups of two, one in each node, get an eighth each; one
    group gets all."""
    cluster = round_cluster(devices=16, name="p3.16xlarge")
    assert seconds(cluster, "all_gather", (2, 8), (0,)) == pytest.approx(
        1e-5 + 9e-6 + N / 2 / (10e9 / 8)
    )
    two = round_cluster(devices=2, nodes=2, name="p3.16xlarge")
    assert seconds(two, "all_gather") == pytest.approx(1e-5 + 9e-6 + N / 2 / 10e9)


def test_strided_groups_use_the_nic_of_their_device() -> None:
    assert seconds(round_cluster(devices=16), "all_gather", (2, 8), (0,)) == pytest.approx(
        1e-5 + 5e-6 + N / 2 / 10e9
    )


def test_groups_of_a_shared_bus_share_it() -> None:
    cluster = load_cluster("cpu", num_devices=8)
    cluster = replace(
        cluster, intra=replace(cluster.intra, bandwidth=10e9, efficiency=1.0, shared_bandwidth=20e9)
    )
    assert group_links(cluster, (2,), (0,))[0].ring == 10e9
    assert group_links(cluster, (8,), (0,))[0].ring == 2.5e9
    assert group_links(cluster, (4, 2), (1,))[0].ring == 2.5e9


def test_tree() -> None:
    one = round_cluster("tree")
    assert seconds(one, "all_reduce") == pytest.approx(1e-5 + 14e-6 + 2 * N / 100e9)
    two = round_cluster("tree", devices=16)
    assert seconds(two, "all_reduce") == pytest.approx(1e-5 + 2 * (7e-6 + 5e-6) + 2 * N / 100e9)
    four = round_cluster("tree", devices=32)
    assert seconds(four, "all_reduce") == pytest.approx(1e-5 + 2 * (7e-6 + 10e-6) + 2 * N / 80e9)


def test_halving_doubling() -> None:
    cluster = round_cluster("halving_doubling")
    assert seconds(cluster, "all_reduce") == pytest.approx(1e-5 + 6e-6 + 2 * 7 / 8 * N / 100e9)
    assert seconds(cluster, "all_gather") == pytest.approx(1e-5 + 3e-6 + 7 / 8 * N / 100e9)
    seven = round_cluster("halving_doubling", devices=7)
    assert seconds(seven, "all_gather") > 1.0, (
        "seven is no power of two: only the slow ring is left"
    )


def test_hierarchical() -> None:
    cluster = round_cluster("hierarchical", devices=16)
    expected = 1e-5 + 14e-6 + 2 * 5e-6 + 2 * 7 / 8 * N / 100e9 + 2 * 1 / 2 * N / 80e9
    assert seconds(cluster, "all_reduce") == pytest.approx(expected)


def test_reduction_in_the_switch() -> None:
    cluster = round_cluster("nvls")
    able = replace(cluster, intra=replace(cluster.intra, in_switch_reduction_efficiency=0.5))
    assert seconds(able, "all_reduce") == pytest.approx(1e-5 + 1e-6 + N * (1 + 1 / 8) / 50e9)
    assert seconds(cluster, "all_reduce") > 1.0, "a switch that cannot reduce leaves the slow ring"
    assert seconds(able, "all_reduce", (2,)) > 1.0, "NCCL wants three ranks"


def test_all_to_all() -> None:
    assert seconds(round_cluster(), "all_to_all") == pytest.approx(1e-5 + 7e-6 + 7 / 8 * N / 100e9)
    expected = 1e-5 + 15 * 5e-6 + 8 * 8 / 16 * N / 80e9
    assert seconds(round_cluster(devices=16), "all_to_all") == pytest.approx(expected)


def test_the_best_protocol_is_taken_for_each_size() -> None:
    cluster = round_cluster()
    quick = replace(protocol("ring"), base_latency=0.0, bandwidth_share=0.25)
    both = replace(
        cluster, library=Library(name="two", protocols=(quick, *cluster.library.protocols))
    )
    assert collective_time(both, (8,), (0,), "all_gather", 8.0) == pytest.approx(7e-6, rel=1e-3)
    assert seconds(both, "all_gather") == seconds(cluster, "all_gather")


def test_rings_of_the_hybrid_cube_mesh() -> None:
    """As many as vTrain's V100 bus bandwidths show in steps of 22.5 GB/s; five devices have a
    chain only."""
    intra = load_cluster("p3.16xlarge").intra
    assert [num_rings(intra, tuple(range(k))) for k in range(2, 9)] == [1, 2, 4, 0, 2, 4, 6]
    assert [num_chains(intra, tuple(range(k))) for k in range(2, 9)] == [1] * 7
    assert num_rings(intra, (0, 3)) == 2
    assert (num_rings(intra, (0, 5)), num_chains(intra, (0, 5))) == (0, 0)


def test_devices_without_a_direct_link_go_over_the_host() -> None:
    """Devices 0..7 of a (2, 4) mesh: the axis of stride four pairs 0-4, 1-5, 2-6, 3-7: two
    bricks twice, one twice."""
    cluster = load_cluster("p3.16xlarge")
    rings = sorted(links.ring for links in group_links(cluster, (2, 4), (0,)))
    assert rings == [pytest.approx(22.5e9), pytest.approx(45e9)]
    odd = replace(cluster, intra=replace(cluster.intra, links=((0, 1, 1),)))
    assert group_links(odd, (2, 4), (0,))[0].ring == 10e9


def test_nothing_to_do_takes_no_time() -> None:
    cluster = round_cluster()
    assert collective_time(cluster, (1, 8), (0,), "all_reduce", N) == 0.0
    assert collective_time(cluster, (8,), (), "all_reduce", N) == 0.0
    assert collective_time(cluster, (8,), (0,), "slice", N) == 0.0
    assert collective_time(cluster, (8,), (0,), "all_reduce", 0) == 0.0


def test_arrays_agree_with_numbers() -> None:
    nbytes = np.array([0.0, 1.0, 1e3, 1e6, 1e9])
    for cluster in (load_cluster("dgx-h100", num_devices=64), measured_cluster()):
        model = collective_model(cluster, (2, 4), (1,))
        for kind in COLLECTIVES:
            assert model.time(kind, nbytes) == pytest.approx(
                [model.time(kind, n) for n in nbytes.tolist()]
            )


def test_errors() -> None:
    cluster = load_cluster("dgx-h100")
    with pytest.raises(
        UnknownName, match="unknown collective 'all_produce': did you mean 'all_reduce'"
    ):
        collective_time(cluster, (8,), (0,), "all_produce", N)
    with pytest.raises(
        BadValue, match="a mesh of 4 x 4 does not fit on the 8 devices of 'dgx-h100'"
    ):
        collective_time(cluster, (4, 4), (0,), "all_reduce", N)
    with pytest.raises(BadValue, match=r"axes \(2,\) are not axes of a mesh of 1 axes"):
        collective_time(cluster, (8,), (2,), "all_reduce", N)
    strange = replace(cluster, intra=replace(cluster.intra, link="string"))
    with pytest.raises(
        BadHardware, match="protocol ring/LL has no hop latency for 'string' links: it lists nvlink"
    ):
        collective_time(strange, (8,), (0,), "all_reduce", N)


def measured_cluster() -> Cluster:
    rows = [
        ("all_reduce", 2, 1, 1e3, 1e-4),
        ("all_reduce", 2, 1, 1e5, 1e-3),
        ("all_reduce", 8, 1, 1e3, 4e-4),
        ("all_reduce", 2, 4, 1e3, 9e-4),
    ]
    table = tuple(
        CollectiveRow(kind=k, group_size=s, num_groups=g, nbytes=n, seconds=t)
        for k, s, g, n, t in rows
    )
    return replace(load_cluster("cpu", num_devices=16), collective_table=table)


def test_measured_collectives_take_precedence() -> None:
    cluster = measured_cluster()

    def at(mesh: tuple[int, ...], nbytes: float, kind: str = "all_reduce") -> float:
        return collective_time(cluster, mesh, (len(mesh) - 1,), kind, nbytes)

    assert at((2,), 1e3) == pytest.approx(1e-4)
    assert at((2,), 1e4) == pytest.approx(10**-3.5)
    assert at((2,), 1.0) == pytest.approx(1e-4), "the smallest row is a floor"
    assert at((2,), 1e7) == pytest.approx(1e-1), "in proportion beyond the largest"
    assert at((4,), 1e3) == pytest.approx(2e-4), "half way from 2 to 8 ranks, in logarithms"
    assert at((4, 2), 1e3) == pytest.approx(9e-4), "four groups at once, as measured"
    plain = load_cluster("cpu", num_devices=16)
    assert at((2,), 1e4, "all_gather") == collective_time(plain, (2,), (0,), "all_gather", 1e4)


def test_the_cache_tells_clusters_and_meshes_apart() -> None:
    fast = round_cluster()
    slow = replace(fast, intra=replace(fast.intra, bandwidth=50e9))
    assert hash(fast) == hash(slow)
    assert seconds(slow, "all_gather") > seconds(fast, "all_gather")
    assert collective_model(fast, (8,), (0,)) is collective_model(round_cluster(), (8,), (0,))
    assert collective_model(fast, (2, 4), (0,)) is not collective_model(fast, (4, 2), (0,))


CLUSTERS = {name: name for name in list_clusters()}


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(list_clusters()),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(1, 7),
    st.sampled_from(COLLECTIVES),
    st.floats(0, 1e11),
    st.floats(0, 1e11),
    st.integers(1, 2),
)
def test_any_mesh_works_and_time_never_falls_with_bytes(
    name, sizes, chosen, kind, nbytes, more, num_nodes
) -> None:  # type: ignore[no-untyped-def]
    sizes = tuple(sizes)
    devices = max(int(np.prod(sizes)), num_nodes)
    nodes = (
        num_nodes
        if name != "cpu"
        and devices <= 8 * num_nodes
        and -(-devices // -(-devices // num_nodes)) == num_nodes
        else None
    )
    cluster = load_cluster(name, num_devices=devices, num_nodes=nodes)
    axes = tuple(axis for axis in range(len(sizes)) if chosen >> axis & 1)
    less, larger = (collective_time(cluster, sizes, axes, kind, n) for n in (nbytes, nbytes + more))
    assert 0 <= less <= larger < float("inf")
