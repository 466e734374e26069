"""Slices of a cluster: the devices of one stage."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.cluster import load_cluster
from cost_models.collectives import collective_time
from cost_models.errors import BadValue
from cost_models.group_links import group_links
from cost_models.machine import Cluster, Level


def test_all_devices_are_the_cluster() -> None:
    cluster = load_cluster("dgx-h100", num_devices=64)
    assert cluster.slice(0, 64) is cluster


def test_whole_nodes_are_a_smaller_cluster() -> None:
    whole = load_cluster("dgx-h100", num_devices=64)
    assert whole.slice(0, 16) == whole.slice(48, 16) == load_cluster("dgx-h100", num_devices=16)


def test_slices_that_lie_in_the_same_way_are_equal() -> None:
    whole = load_cluster("dgx-h100", num_devices=64)
    assert whole.slice(2, 4) == whole.slice(52, 4) == whole.slice(0, 4)
    assert whole.slice(6, 4) == whole.slice(14, 4) != whole.slice(0, 4)
    assert (whole.slice(6, 4).num_nodes, whole.slice(6, 4).first) == (2, 6)
    assert whole.slice(6, 10).slice(1, 3) == whole.slice(7, 3)


def test_where_a_slice_begins_matters_in_a_node_of_direct_links() -> None:
    """In a hybrid cube mesh, devices 0 and 1 have one brick, 1 and 2 have two."""
    whole = load_cluster("p3.16xlarge")
    rates = [
        links.ring for first in (0, 1) for links in group_links(whole.slice(first, 2), (2,), (0,))
    ]
    assert rates == pytest.approx([22.5e9, 45e9])


def test_pods_are_remembered_only_by_slices_that_leave_them() -> None:
    """Pods of 3,072 devices: a stage of 2,048 that lies over an edge is another than one that does
    not."""
    whole = load_cluster("h100-roce-24k", num_devices=24576)
    stages = [whole.slice(2048 * index, 2048) for index in range(12)]
    assert len(set(stages)) == 2
    assert [len(set(stages[index::3])) for index in range(3)] == [1, 1, 1]
    inside, over = stages[0], stages[1]
    times = [collective_time(s, (256, 8), (0,), "all_gather", 1e9) for s in (inside, over)]
    assert times[1] > times[0]


@given(
    first=st.integers(0, 95), count=st.integers(2, 24), period=st.integers(0, 3), axis=st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_a_slice_costs_what_its_devices_cost(
    first: int, count: int, period: int, axis: bool
) -> None:
    """However a slice was made small, its links are those of devices at its place."""
    whole = flat(96 * 4 + 24)
    start = first + 96 * period
    part = whole.slice(start, count)
    plain = replace(whole, num_devices=count, num_nodes=8, first=start)
    sizes = (2, count // 2) if axis else (count,)
    for axes in ((0,), (len(sizes) - 1,)):
        ours = group_links(part, sizes, axes)
        assert set(ours) == set(group_links(plain, sizes, axes))


def flat(devices: int) -> Cluster:
    """Nodes of 8 in blocks of 3 nodes, oversubscribed, and of 12."""
    base = load_cluster("dgx-a100")
    assert base.inter is not None
    levels = (
        Level(name="rack", nodes=3, oversubscription=2.0),
        Level(name="pod", nodes=12, oversubscription=5.0, latency=1e-6),
    )
    inter = replace(base.inter, levels=levels)
    return replace(base, inter=inter, num_devices=devices, num_nodes=math.ceil(devices / 8))


@pytest.mark.parametrize(("first", "count"), [(-1, 4), (0, 0), (60, 5), (64, 1)])
def test_devices_that_are_not_there(first: int, count: int) -> None:
    message = f"'dgx-h100' has 64 devices: {count} from device {first} on are no slice of it"
    with pytest.raises(BadValue, match=message):
        load_cluster("dgx-h100", num_devices=64).slice(first, count)
