"""`plan hardware`: the known clusters, or one of them with every figure, its source and a picture.
Needs no torch."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from cost_models.cluster import load_cluster, read_sources
from cost_models.cluster_text import cluster_text
from cost_models.hardware_toml import HARDWARE, list_clusters, list_mixed
from cost_models.machine import Cluster
from cost_models.mixed import MixedCluster
from cost_models.mixed_file import load_mixed
from cost_models.units import format_bytes, format_rate
from planner.report.sections import Section, Table

__all__ = [
    "all_clusters",
    "all_mixed",
    "cluster_record",
    "draw",
    "in_words_between",
    "list_section",
    "sheet",
]

_TABLES = (
    "gemm_table",
    "elementwise_table",
    "op_table",
    "collective_table",
    "contention_table",
    "provenance",
    "sources",
)


def all_clusters() -> tuple[Cluster, ...]:
    """Every cluster that comes with the package, one full node of each."""
    return tuple(load_cluster(name) for name in list_clusters())


def all_mixed() -> tuple[MixedCluster, ...]:
    """Every cluster of unlike nodes that comes with the package."""
    return tuple(load_mixed(name) for name in list_mixed())


def cluster_record(cluster: Cluster) -> dict[str, Any]:
    """A cluster as `--json` prints it, in SI units."""
    device, inter = cluster.device, cluster.inter
    return {
        "name": cluster.name,
        "device": device.name,
        "devices_per_node": cluster.devices_per_node,
        "max_nodes": cluster.max_nodes,
        "num_devices": cluster.num_devices,
        "num_nodes": cluster.num_nodes,
        "memory_bytes": device.memory,
        "usable_memory_bytes": device.usable_memory,
        "memory_bandwidth_bytes_per_s": device.memory_bandwidth,
        "peak_flops": dict(device.peak_flops),
        "intra": {
            "fabric": cluster.intra.fabric,
            "link": cluster.intra.link,
            "bandwidth_bytes_per_s": cluster.intra.bandwidth,
        },
        "inter": inter
        and {
            "link": inter.link,
            "nics_per_node": inter.nics_per_node,
            "bandwidth_bytes_per_s": inter.bandwidth,
        },
    }


def list_section(clusters: tuple[Cluster, ...]) -> Section:
    """The clusters in a table."""
    rows = tuple(
        (
            c.name,
            f"{c.devices_per_node} x {c.device.name}",
            format_bytes(c.device.memory),
            _peak(c),
            f"{c.intra.link} {format_rate(c.intra.bandwidth, 'B/s')}",
            in_words_between(c),
            f"{c.max_nodes}",
        )
        for c in clusters
    )
    header = ("name", "per node", "memory", "peak", "inside a node", "between nodes", "most nodes")
    lines = (
        Table(header=header, rows=rows, right=frozenset({2, 3, 6})),
        "plan hardware NAME shows every figure with its source, and draws it; --hardware takes a "
        "name or a file of your own",
    )
    return Section(title="Hardware", body=lines)


def _peak(cluster: Cluster) -> str:
    """The best peak of a device among the formats that models train in."""
    formats = [f for f in ("bf16", "fp16", "fp32") if cluster.device.has_peak(f)]
    return f"{format_rate(cluster.device.peak(formats[0]), 'FLOP/s')} {formats[0]}"


def in_words_between(cluster: Cluster) -> str:
    """The NICs of a node, in a table."""
    inter = cluster.inter
    return (
        "-"
        if inter is None
        else f"{inter.link} {inter.nics_per_node} x {format_rate(inter.bandwidth, 'B/s')}"
    )


def sheet(name: str, cluster: Cluster, files: Mapping[str, str]) -> tuple[Section, ...]:
    """The sections of one cluster: all its figures with their sources."""
    sources = sources_of(name, cluster)
    rows = tuple((key, value, sources.get(key, "")) for key, value in _figures(cluster))
    nodes = f"{cluster.num_nodes} node{'s' if cluster.num_nodes > 1 else ''}"
    measured = [
        f"{len(table)} measured {what}"
        for what, table in (
            ("products", cluster.device.gemm_table),
            ("bandwidths", cluster.device.elementwise_table),
            ("collectives", cluster.collective_table),
        )
        if table
    ]
    size = f"{cluster.num_devices} x {cluster.device.name} on {nodes}; at most {cluster.max_nodes} nodes"
    return (
        Section(title=cluster.name, body=(size, *([", ".join(measured)] if measured else []))),
        Section(
            title="Figures",
            body=(Table(header=("figure", "value", "source"), rows=rows, right=frozenset({1})),),
        ),
        Section(title="Files", body=(Table(header=(), rows=tuple(files.items())),)),
    )


def draw(cluster: Cluster, path: str) -> None:
    """Writes the picture of a cluster."""
    # Imports matplotlib, which the list does not need.
    from cost_models.topology_picture import draw_cluster

    draw_cluster(cluster, path)


def sources_of(name: str, cluster: Cluster) -> Mapping[str, str]:
    """Where every figure is from: the cluster's file, then those of its device and its library."""
    found: dict[str, str] = {}
    parts = {
        "device": ("devices", cluster.device.name),
        "library": ("libraries", cluster.library.name),
    }
    for what, (folder, part) in parts.items():
        path = HARDWARE / folder / f"{part}.toml"
        if path.is_file():
            found |= {f"{what}.{key}": text for key, text in read_sources(str(path)).items()}
    return found | read_sources(name)


def _figures(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Every key of the cluster's file and its value, units in the key's name."""
    raw = tomllib.loads(cluster_text(cluster, provenance={}, sources={}))
    yield from _flat("", raw)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in _TABLES:
                yield from _flat(f"{prefix}.{key}" if prefix else key, item)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, item in enumerate(value):
            yield from _flat(f"{prefix}.{item.get('name', index + 1)}", item)
    elif isinstance(value, list):
        yield (
            prefix,
            ", ".join(
                "x".join(map(str, item)) if isinstance(item, list) else str(item) for item in value
            ),
        )
    else:
        yield prefix, _figure(value)


def _figure(value: Any) -> str:
    """One value of a file, in a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
