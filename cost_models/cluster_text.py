"""A `Cluster` as one TOML text, device and library included, in the units of hardware files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from cost_models.atomic_write import write_atomically
from cost_models.device import Device
from cost_models.library import Library
from cost_models.machine import Cluster
from cost_models.schema import (
    CLUSTER_KEYS,
    DEVICE_KEYS,
    INTER_KEYS,
    INTRA_KEYS,
    LEVEL_KEYS,
    LIBRARY_KEYS,
    PEAK_UNIT,
    PROTOCOL_KEYS,
    in_unit,
    write_table,
)
from cost_models.units import US

__all__ = ["cluster_text", "write_cluster"]


def _without_empty(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table without empty lists, which would look forgotten in a file."""
    kept = {
        key: value
        for key, value in table.items()
        if not (isinstance(value, list | tuple) and not value)
    }
    return {
        key: _without_empty(value) if isinstance(value, Mapping) else value
        for key, value in kept.items()
    }


def _device_table(device: Device) -> dict[str, Any]:
    out = write_table(device, DEVICE_KEYS)
    out["gemm_tiles"] = [list(tile) for tile in device.gemm_tiles]
    out["gemm_table"] = [[r.batch, r.m, r.n, r.k, r.dtype, r.seconds] for r in device.gemm_table]
    out["elementwise_table"] = [[r.nbytes, r.bandwidth] for r in device.elementwise_table]
    out["op_table"] = [
        [r.op, r.kind, r.dtype, r.flops, r.nbytes, *r.gemm, r.steps, r.seconds]
        for r in device.op_table
    ]
    out["peak_tflops"] = {name: in_unit(flops, PEAK_UNIT) for name, flops in device.peak_flops}
    out["kind_efficiency"] = dict(device.kind_efficiency)
    return out


def _library_table(library: Library) -> dict[str, Any]:
    protocols = []
    for protocol in library.protocols:
        hops = {kind: in_unit(seconds, US) for kind, seconds in protocol.hop_latency}
        protocols.append(write_table(protocol, PROTOCOL_KEYS) | {"hop_latency_us": hops})
    return write_table(library, LIBRARY_KEYS) | {"protocols": protocols}


def write_cluster(
    path: str | Path, cluster: Cluster, *, provenance: Mapping[str, str], sources: Mapping[str, str]
) -> None:
    """Writes `cluster`, device and library included, as one TOML file that `load_cluster` reads
    back; atomic.

    Raises `BadValue` if the file cannot be written.
    """
    write_atomically(path, cluster_text(cluster, provenance=provenance, sources=sources))


def cluster_text(
    cluster: Cluster, *, provenance: Mapping[str, str], sources: Mapping[str, str]
) -> str:
    """`cluster`, device and library included, as one TOML text.

    `provenance` says how it was made (`date`, `host`, `versions`, `command`), `sources` where each
    figure is from.
    """
    table = write_table(cluster, CLUSTER_KEYS)
    rows = [
        [r.kind, r.group_size, r.num_groups, r.nbytes, r.seconds] for r in cluster.collective_table
    ]
    table["collective_table"] = rows
    table["contention"] = [[r.num_devices, r.kind, r.slowdown] for r in cluster.contention]
    table["provenance"] = dict(provenance)
    table["sources"] = dict(sources)
    table["intra"] = write_table(cluster.intra, INTRA_KEYS)
    if cluster.intra.links:
        table["intra"]["links"] = [list(link) for link in cluster.intra.links]
    if cluster.inter is not None:
        table["inter"] = write_table(cluster.inter, INTER_KEYS)
        table["inter"]["levels"] = [write_table(x, LEVEL_KEYS) for x in cluster.inter.levels]
    table["device"] = _device_table(cluster.device)
    table["library"] = _library_table(cluster.library)
    return tomli_w.dumps(_without_empty(table))
