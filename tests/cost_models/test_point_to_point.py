"""Messages from rank to rank: by hand, against a walk over links with names, and measured."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measurements import DATA
from plain_pairs import plain_seconds_per_byte

from cost_models.cluster import load_cluster
from cost_models.errors import BadHardware, BadValue
from cost_models.library import Library, Protocol
from cost_models.machine import Cluster, CollectiveRow, Level
from cost_models.mixed import Bridge, MixedCluster
from cost_models.pair_links import pair_links
from cost_models.point_to_point import links_between, send_model, send_time

HOPS = (("nvlink", 1e-6), ("pcie", 2e-6), ("infiniband", 5e-6), ("ethernet", 9e-6))
N = 1e9


def one_protocol(algorithm: str) -> Protocol:
    return Protocol(
        algorithm=algorithm, name="one", base_latency=1e-5, bandwidth_share=1.0, hop_latency=HOPS
    )


LIBRARY = Library(name="round", protocols=tuple(map(one_protocol, ("ring", "pairwise", "send"))))


def round_cluster(devices: int = 16, name: str = "dgx-a100", **inter: object) -> Cluster:
    """8 devices a node, 100 GB/s a port (or brick), 8 NICs (or one) of 10 GB/s; 10 us a call, 1 us
    a hop inside and 5 us between nodes (Ethernet 9)."""
    cluster = load_cluster(name, num_devices=devices)
    assert cluster.inter is not None
    intra = replace(
        cluster.intra, bandwidth=100e9, efficiency=1.0, overhead=0.0, pass_bandwidth=None
    )
    network = replace(cluster.inter, bandwidth=10e9, efficiency=1.0, overhead=0.0, **inter)  # type: ignore[arg-type]
    return replace(cluster, library=LIBRARY, intra=intra, inter=network)


def test_inside_a_node() -> None:
    """One pair, or four apart, have their ports alone; two to one device share its port, and so do
    two from one; back and forth do not."""
    cluster = round_cluster(8)
    alone = 1e-5 + 1e-6 + N / 100e9
    for pairs in (((0, 1),), ((0, 4), (1, 5), (2, 6), (3, 7)), ((0, 1), (1, 0))):
        assert send_time(cluster, pairs, N) == pytest.approx(alone)
    for pairs in (((0, 1), (2, 1)), ((0, 1), (0, 2))):
        assert send_time(cluster, pairs, N) == pytest.approx(1e-5 + 1e-6 + 2 * N / 100e9)


def test_between_nodes() -> None:
    """A stage of a node to the next: every device has a NIC of its own. With one NIC for eight
    devices they share it."""
    for count in (1, 8):
        seconds = links_between(round_cluster(), 0, 8, count).time(N)
        assert seconds == pytest.approx(1e-5 + 5e-6 + N / 10e9)
    shared = round_cluster(name="p3.16xlarge")
    assert links_between(shared, 0, 8, 1).time(N) == pytest.approx(1e-5 + 9e-6 + N / 10e9)
    assert links_between(shared, 0, 8, 8).time(N) == pytest.approx(1e-5 + 9e-6 + 8 * N / 10e9)


def test_a_device_with_two_nics_sends_over_both() -> None:
    wide = round_cluster(nics_per_node=16)
    assert send_time(wide, ((0, 8),), N) == pytest.approx(1e-5 + 5e-6 + N / 20e9)


def test_one_stream_may_be_slower_than_its_nic() -> None:
    """As over TCP: one pair has 4 GB/s; the NIC's 10 GB/s are reached by three."""
    cluster = round_cluster(name="p3.16xlarge", pair_bandwidth=4e9)
    times = [links_between(cluster, 0, 8, count).time(N) - 1.9e-5 for count in (1, 2, 3)]
    assert times == pytest.approx([N / 4e9, N / 4e9, 3 * N / 10e9])


def test_over_the_edge_of_a_pod() -> None:
    """Two pods of two nodes, with a quarter of their NICs' 160 GB/s between them: 40 GB/s for 16
    pairs; four pairs have their NICs. Each level that is left takes its own time more."""
    levels = (
        Level(name="rack", nodes=1, latency=1e-6),
        Level(name="pod", nodes=2, oversubscription=4.0, latency=3e-6),
    )
    cluster = round_cluster(32, levels=levels)
    far = 1e-5 + 5e-6 + 4e-6
    assert links_between(cluster, 0, 16, 16).time(N) == pytest.approx(far + 16 * N / 40e9)
    assert links_between(cluster, 0, 16, 4).time(N) == pytest.approx(far + N / 10e9)
    near = links_between(cluster, 0, 8, 8).time(N)
    assert near == pytest.approx(1e-5 + 5e-6 + 1e-6 + N / 10e9)


def test_a_message_to_another_rail_takes_a_hop_inside_its_node() -> None:
    rails = round_cluster(levels=(Level(name="unit", nodes=4, rails=True),))
    same, other = (send_time(rails, ((0, device),), 1.0) for device in (8, 9))
    assert other - same == pytest.approx(1e-6)
    free = round_cluster()
    assert send_time(free, ((0, 8),), 1.0) == send_time(free, ((0, 9),), 1.0)


def test_direct_links() -> None:
    """0 and 3 have two bricks, 0 and 1 one, 0 and 5 none: they go over the host."""
    cluster = round_cluster(8, name="p3.16xlarge")
    times = [send_time(cluster, ((0, device),), N) - 1e-5 for device in (3, 1, 5)]
    expected = [1e-6 + N / 200e9, 1e-6 + N / 100e9, 2e-6 + N / 10e9]
    assert times == pytest.approx(expected)


def test_pieces_of_different_sizes() -> None:
    """A device that sends a half, and one that sends a quarter, to one port."""
    model = send_model(round_cluster(8), ((0, 1), (2, 1), (3, 1)), (0.5, 0.25, 0.0))
    assert model.time(N) == pytest.approx(1e-5 + 1e-6 + 0.75 * N / 100e9)


def test_nothing_to_send() -> None:
    cluster = round_cluster(8)
    assert send_time(cluster, (), N) == send_time(cluster, ((3, 3),), N) == 0.0
    assert send_time(cluster, ((0, 1),), 0.0) == 0.0
    array = send_model(cluster, ((0, 1),)).time(np.array([0.0, N]))
    assert array == pytest.approx([0.0, send_time(cluster, ((0, 1),), N)])


def test_the_class_of_links() -> None:
    cluster = round_cluster(16)
    assert links_between(cluster, 0, 4, 4).link_class == "node"
    assert links_between(cluster, 6, 7, 2).link_class == "network"


def test_short_messages_take_the_quicker_protocol() -> None:
    """NCCL's LL up to some ten KiB, Simple beyond."""
    model = links_between(load_cluster("dgx-h100", num_devices=16), 0, 8, 8)
    overhead = 20e-6
    assert model.time(1024.0) == pytest.approx(overhead + 6.6e-6 + 2.7e-6 + 4 * 1024 / 46.5e9)
    assert model.time(2**26) == pytest.approx(overhead + 8.4e-6 + 14e-6 + 2**26 / 46.5e9)


def test_measured_messages_take_precedence_inside_a_node() -> None:
    row = CollectiveRow(kind="send", group_size=2, num_groups=1, nbytes=1e6, seconds=0.25)
    cluster = replace(round_cluster(16), collective_table=(row,))
    assert send_time(cluster, ((0, 1),), 1e6) == pytest.approx(0.25)
    assert send_time(cluster, ((0, 8),), 1e6) < 0.1


def test_4096_pairs_at_once() -> None:
    """As long as eight: every device has a NIC of its own."""
    cluster = round_cluster(8192, name="dgx-h100")
    assert links_between(cluster, 0, 4096, 4096).time(N) == links_between(cluster, 0, 8, 8).time(N)


def mixed(**bridge: float) -> MixedCluster:
    """16 devices with eight NICs a node, then 8 with one."""
    groups = (round_cluster(16), round_cluster(8, name="p3.16xlarge"))
    return MixedCluster(
        name="both",
        groups=groups,
        bridges=(Bridge(groups=(0, 1), link="ethernet", **bridge),),
    )


def test_between_groups_of_nodes() -> None:
    """Eight senders with a NIC each, eight receivers with one: the receivers' NIC is what counts,
    both ways."""
    machine = mixed(latency=1e-6)
    expected = 1e-5 + 9e-6 + 1e-6 + 8 * N / 10e9
    assert links_between(machine, 8, 16, 8).time(N) == pytest.approx(expected)
    assert links_between(machine, 16, 0, 8).time(N) == pytest.approx(expected)
    narrow = mixed(bandwidth=4e9)
    both = tuple((8 + i, 16 + i) for i in range(4)) + tuple((20 + i, i) for i in range(4))
    assert send_time(narrow, both, N) == pytest.approx(1e-5 + 9e-6 + 4 * N / 4e9)


def test_bad_pairs() -> None:
    with pytest.raises(BadValue, match="a message from device 0 to device 16: 'dgx-a100' has devi"):
        send_time(round_cluster(16), ((0, 16),), N)
    lonely = replace(round_cluster(16), inter=None, max_nodes=1)
    with pytest.raises(
        BadHardware, match=r"'dgx-a100' has no \[inter\] table: there is no path out"
    ):
        send_time(lonely, ((0, 8),), N)


LEVELS = (
    Level(name="rack", nodes=2, oversubscription=3.0),
    Level(name="pod", nodes=4, oversubscription=5.0),
)


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_crowds_are_those_of_a_walk_over_links_with_names(data: st.DataObject) -> None:
    plain = round_cluster(
        61, levels=LEVELS, nics_per_node=data.draw(st.sampled_from([1, 4, 8, 16]))
    )
    bus = replace(plain, intra=replace(plain.intra, shared_bandwidth=150e9))
    bricks = round_cluster(24, name="p3.16xlarge", pair_bandwidth=3e9)
    both = MixedCluster(
        name="both",
        groups=(replace(plain, first=3), bricks, bus),
        bridges=tuple(
            Bridge(groups=pair, link="ethernet", bandwidth=7e9, pair_bandwidth=rate)
            for pair, rate in (((0, 1), None), ((0, 2), 2e9), ((1, 2), 1e9))
        ),
    )
    machine = data.draw(st.sampled_from([plain, bus, bricks, both]))
    device = st.integers(0, machine.num_devices - 1)
    pair = st.tuples(device, device).filter(lambda ends: ends[0] != ends[1])
    pairs = data.draw(st.lists(pair, min_size=1, max_size=24))
    weights = data.draw(
        st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=len(pairs), max_size=len(pairs))
    )
    found = pair_links(machine, np.array(pairs), np.array(weights)).per_byte
    assert found == pytest.approx(plain_seconds_per_byte(machine, pairs, weights))


needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no published measurements at {DATA}; set SHARDWRIGHT_DATA"
)


@needs_data
def test_sendrecv_of_eight_a100() -> None:
    """nccl-tests' sendrecv_perf, each device to its neighbour: the rows from 256 MiB on (the one
    before contradicts them: twice the time a byte)."""
    with (DATA / "collectives.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["op"] == "sendrecv"]
    ring = tuple((i, (i + 1) % 8) for i in range(8))
    errors = [
        send_time(load_cluster("dgx-a100"), ring, float(row["nbytes"]))
        * 1e6
        / float(row["time_us"])
        - 1
        for row in rows
        if float(row["nbytes"]) >= 2**28
    ]
    assert len(errors) == 3
    assert max(map(abs, errors)) <= 0.03


@needs_data
@pytest.mark.parametrize(
    ("gpu", "nics", "bandwidth", "pair", "limit"),
    [("GH-96", 4, 25e9, None, 0.04), ("A100-40", 1, 12.5e9 / 2, 2e9, 0.13)],
)
def test_sailors_fits_between_nodes(
    gpu: str, nics: int, bandwidth: float, pair: float | None, limit: float
) -> None:
    """Sailor's fits of 1, 2 and 4 devices a node that send at once, 256 MB in all: Alps, with a NIC
    of 200 Gbit/s for each GH200; and Google's A100 nodes, where a TCP stream has 2 GB/s, and all
    together half of the 100 Gbit/s (those two figures are from these rows)."""
    path = DATA.parent / "sailor" / "network_same_gpu.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["gpu"] == gpu and r["where"] == "inter"]
    cluster = load_cluster("dgx-h100", num_devices=8, num_nodes=2)
    assert cluster.inter is not None
    inter = replace(
        cluster.inter,
        nics_per_node=nics,
        bandwidth=bandwidth,
        pair_bandwidth=pair,
        levels=(),
    )
    cluster = replace(cluster, inter=inter, devices_per_node=4)
    for row in rows:
        count, nbytes = int(row["count"]), 256e6
        x = math.log2(nbytes / 1e6)
        rate = float(row["c2"]) * x**2 + float(row["c1"]) * x + float(row["c0"])
        ours = links_between(cluster, 0, 4, count).time(nbytes / count)
        assert ours == pytest.approx(nbytes / rate / 1e9, rel=limit), count
