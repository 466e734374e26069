"""The links that each mesh axis crosses: inside nodes, between nodes or both, and of which kinds.

The mesh is laid on devices in row-major order, as in `group_links`. If the groups of an axis
differ, the one on the most nodes counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cost_models.collectives import collective_model
from cost_models.machine import Cluster

__all__ = ["AxisLinks", "axis_links", "links_in_words"]

_WORDS = {
    "nvlink": "NVLink",
    "pcie": "PCIe",
    "infiniband": "InfiniBand",
    "roce": "RoCE",
    "ethernet": "Ethernet",
    "shared_memory": "shared memory",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisLinks:
    """The groups of one axis: on how many nodes each is, the most of its ranks on one node, and the
    kinds of links that it crosses, those inside a node first."""

    name: str
    size: int
    num_nodes: int
    ranks_per_node: int
    links: tuple[str, ...]


def axis_links(
    cluster: Cluster, names: tuple[str, ...], sizes: tuple[int, ...]
) -> tuple[AxisLinks, ...]:
    """The links of every axis of more than one device."""
    return tuple(
        _axis_links(cluster, sizes, axis, names[axis])
        for axis, size in enumerate(sizes)
        if size > 1
    )


def _axis_links(cluster: Cluster, sizes: tuple[int, ...], axis: int, name: str) -> AxisLinks:
    widest = max(
        collective_model(cluster, sizes, (axis,)).links,
        key=lambda links: (links.num_nodes, links.width),
    )
    inside = (cluster.intra.link,) if widest.width > 1 else ()
    between = (cluster.inter.link,) if widest.num_nodes > 1 and cluster.inter is not None else ()
    return AxisLinks(
        name=name,
        size=sizes[axis],
        num_nodes=widest.num_nodes,
        ranks_per_node=widest.width,
        links=inside + between,
    )


def links_in_words(axes: Iterable[Mapping[str, Any]]) -> str:
    """`tp=8 inside a node over NVLink; dp=8 between nodes over InfiniBand`, for axes given as
    `AxisLinks` in dicts; axes inside a node come first."""
    return "; ".join(
        _in_words(axis) for axis in sorted(axes, key=lambda axis: int(axis["num_nodes"]) > 1)
    )


def _in_words(axis: Mapping[str, Any]) -> str:
    over = " and ".join(_WORDS.get(link, link) for link in axis["links"])
    if axis["num_nodes"] == 1:
        where = "inside a node"
    elif axis["ranks_per_node"] == 1:
        where = "between nodes"
    else:
        where = f"inside and between nodes ({axis['num_nodes']} nodes, {axis['ranks_per_node']} devices on each)"
    return f"{axis['name']}={axis['size']} {where} over {over}"
