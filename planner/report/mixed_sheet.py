"""`plan hardware` for clusters of unlike nodes: their groups, and the ways between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cost_models.machine import Cluster
from cost_models.mixed import Bridge, MixedCluster
from cost_models.units import format_bytes, format_rate, format_time
from planner.report.hardware_sheet import cluster_record, in_words_between
from planner.report.sections import Section, Table

__all__ = ["mixed_record", "mixed_section", "mixed_sheet"]


def mixed_record(machine: MixedCluster) -> dict[str, Any]:
    """A cluster of unlike nodes as `--json` prints it, in SI units."""
    return {
        "name": machine.name,
        "num_devices": machine.num_devices,
        "groups": [cluster_record(group) for group in machine.groups],
        "bridges": [
            {
                "groups": [machine.groups[index].name for index in bridge.groups],
                "link": bridge.link,
                "latency_s": bridge.latency,
                "bandwidth_bytes_per_s": bridge.bandwidth,
                "pair_bandwidth_bytes_per_s": bridge.pair_bandwidth,
            }
            for bridge in machine.bridges
        ],
    }


def mixed_section(machines: tuple[MixedCluster, ...]) -> Section:
    """Clusters of unlike nodes in a table."""
    rows = tuple(
        (machine.name, " + ".join(map(_nodes, machine.groups)), f"{machine.num_devices}")
        for machine in machines
    )
    table = Table(header=("name", "nodes", "devices"), rows=rows, right=frozenset({2}))
    return Section(title="Hardware of unlike nodes", body=(table,))


def mixed_sheet(machine: MixedCluster, files: Mapping[str, str]) -> tuple[Section, ...]:
    """The sections of one cluster of unlike nodes."""
    groups = tuple(
        (
            group.name,
            f"{start} to {start + group.num_devices - 1}",
            _nodes(group),
            format_bytes(group.device.memory),
            f"{group.intra.link} {format_rate(group.intra.bandwidth, 'B/s')}",
            in_words_between(group),
        )
        for group, start in zip(machine.groups, machine.starts, strict=True)
    )
    header = ("group", "devices", "nodes", "memory", "inside a node", "between nodes")
    bridges = tuple(_bridge(machine, bridge) for bridge in machine.bridges)
    ways = ("between", "link", "all together", "one pair", "latency")
    return (
        Section(
            title=machine.name,
            body=(f"{machine.num_devices} devices on nodes of {len(groups)} kinds",),
        ),
        Section(title="Groups", body=(Table(header=header, rows=groups, right=frozenset({3})),)),
        Section(title="Bridges", body=(Table(header=ways, rows=bridges),)),
        Section(title="Files", body=(Table(header=(), rows=tuple(files.items())),)),
    )


def _nodes(group: Cluster) -> str:
    return f"{group.num_nodes} of {group.node_width} x {group.device.name}"


def _bridge(machine: MixedCluster, bridge: Bridge) -> tuple[str, ...]:
    one, other = (machine.groups[index].name for index in bridge.groups)

    def rate(limit: float | None) -> str:
        return "as their NICs" if limit is None else format_rate(limit, "B/s")

    return (
        f"{one} and {other}",
        bridge.link,
        rate(bridge.bandwidth),
        rate(bridge.pair_bandwidth),
        f"{format_time(bridge.latency)} more than a hop",
    )
