"""The links of a mesh's groups against a plain walk over all ranks; and at any size at once."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_groups import groups, plain_links

from cost_models.cluster import load_cluster
from cost_models.errors import BadHardware, BadValue
from cost_models.group_cells import groups_of
from cost_models.group_links import GroupLinks, group_links
from cost_models.machine import Cluster, Level


def cluster_of(
    width: int, devices: int, *, first: int, nics: int, levels: tuple[Level, ...] = ()
) -> Cluster:
    """`devices` devices on nodes of `width`, the first at place `first`; NICs of 12 bytes/s; a bus
    of 7 bytes/s in all, of which a device can take 3."""
    base = load_cluster("dgx-h100")
    assert base.inter is not None
    inter = replace(base.inter, nics_per_node=nics, bandwidth=12.0, efficiency=1.0, levels=levels)
    intra = replace(base.intra, bandwidth=3.0, efficiency=1.0, shared_bandwidth=7.0)
    return replace(
        base,
        inter=inter,
        intra=intra,
        devices_per_node=width,
        num_devices=devices,
        num_nodes=-(-(first + devices) // width),
        node_width=width,
        first=first,
    )


def figures(links: GroupLinks) -> tuple[object, ...]:
    above = tuple((b.num_blocks, b.width, b.rate, b.latency) for b in links.blocks)
    return links.size, links.num_nodes, links.width, links.ring, links.node, above


@st.composite
def meshes(draw: st.DrawFn) -> tuple[Cluster, tuple[int, ...], tuple[int, ...]]:
    sizes = tuple(draw(st.lists(st.integers(1, 14), min_size=1, max_size=4)))
    axes = tuple(axis for axis in range(len(sizes)) if draw(st.booleans()))
    width = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 70]))
    block = draw(st.integers(1, 4))
    levels = (
        Level(name="rack", nodes=block, oversubscription=2.0),
        Level(name="pod", nodes=2 * block, oversubscription=7.0, latency=1e-6),
    )
    cluster = cluster_of(
        width,
        math.prod(sizes),
        first=draw(st.integers(0, width * 2 * block - 1)),
        nics=draw(st.sampled_from([1, 2, width])),
        levels=draw(st.sampled_from([(), levels[:1], levels])),
    )
    return cluster, sizes, axes


@given(meshes())
@settings(max_examples=200, deadline=None)
def test_links_are_those_of_a_walk_over_all_ranks(
    case: tuple[Cluster, tuple[int, ...], tuple[int, ...]],
) -> None:
    cluster, sizes, axes = case
    found = group_links(cluster, sizes, axes)
    if math.prod(sizes[axis] for axis in axes) == 1:
        assert found == ()
        return
    assert len(set(found)) == len(found)
    rounded = {_rounded(figures(links)) for links in found}
    assert rounded == {_rounded(plain) for plain in plain_links(cluster, sizes, axes)}


def _rounded(value: object) -> object:
    """Sums of NICs' shares may differ in the last bit."""
    if isinstance(value, tuple):
        return tuple(_rounded(one) for one in value)
    return float(f"{value:.12g}") if isinstance(value, float) else value


def test_groups_lie_in_row_major_order() -> None:
    for axes in ((1,), (0,), (0, 1), ()):
        ranks = groups_of((2, 3), axes, width=6).ranks.tolist()
        assert [tuple(group) for group in ranks] == groups((2, 3), axes)


def test_an_axis_that_is_not_there() -> None:
    with pytest.raises(BadValue, match=r"axes \(2,\) are not axes of a mesh of 2 axes"):
        groups_of((2, 3), (2,), width=6)


@pytest.mark.parametrize("name", ["dgx-h100", "h100-spectrum-100k"])
def test_a_large_mesh_is_as_short_as_a_small_one(name: str) -> None:
    """98,304 devices of 8 a node: no array as long as the mesh, but for the members of a group."""
    width = 8 * (64 if name == "h100-spectrum-100k" else 1)
    for sizes in ((12288, 8), (1536, 8, 8), (96, 128, 8), (98304,)):
        for axis in range(len(sizes)):
            found = groups_of(sizes, (axis,), width=width)
            assert found.ranks.size <= 8 * width and len(found.steps) == sizes[axis]


def test_pods_out_of_which_the_bandwidth_is_a_seventh() -> None:
    """24,576 devices in eight pods of 3,072. Data parallelism over the pods: each of 3,072 groups
    has its NIC's seventh; 8 groups of 3,072 are limited by their NICs, not by the pods."""
    cluster = load_cluster("h100-roce-24k", num_devices=24576)
    (over,) = group_links(cluster, (8, 3072), (0,))
    assert (over.num_nodes, over.node) == (8, pytest.approx(46.5e9))
    pods = over.blocks[-1]
    assert (pods.num_blocks, pods.width, pods.rate) == (8, 1, pytest.approx(46.5e9 / 7))
    (wide,) = group_links(cluster, (3072, 8), (0,))
    assert wide.blocks[-1].num_blocks == 8 and wide.blocks[-1].width == 384
    assert wide.blocks[-1].rate == pytest.approx(3072 * 46.5e9 / 7 / 8)
    assert wide.blocks[-1].rate > wide.node == pytest.approx(46.5e9)
    (inside,) = group_links(cluster, (3072, 8), (1,))
    assert inside.blocks == ()


def test_a_domain_of_72_is_one_node() -> None:
    cluster = load_cluster("gb200-nvl72", num_devices=72)
    (links,) = group_links(cluster, (72,), (0,))
    assert (links.num_nodes, links.width, links.ring) == (1, 72, pytest.approx(729e9))


def test_a_slice_that_begins_inside_a_node() -> None:
    """Four groups of two from place 6 of a node of 8: the pair 6, 7 and two pairs are inside nodes,
    unless they begin at an odd place."""
    cluster = cluster_of(8, 8, first=6, nics=8)
    assert {links.num_nodes for links in group_links(cluster, (4, 2), (1,))} == {1}
    odd = cluster_of(8, 8, first=7, nics=8)
    assert {links.num_nodes for links in group_links(odd, (4, 2), (1,))} == {1, 2}


def test_levels_that_limit_nothing_are_left_out() -> None:
    assert load_cluster("dgx-h100", num_devices=16384).narrow_levels == ()
    with pytest.raises(BadHardware, match="list the smallest blocks first"):
        cluster_of(
            8, 8, first=0, nics=8, levels=(Level(name="a", nodes=4), Level(name="b", nodes=4))
        )
