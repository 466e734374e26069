"""Hardware files: from TOML to `Device`, `Library` and `Cluster`. Units end here; errors name the
file and the key. The way back is `cluster_text`.

    load_cluster("dgx-h100", num_devices=64)      8 nodes of 8
    load_cluster("my_machine.toml", num_nodes=2)  a file of your own
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cost_models.device import Device, ElementwiseRow, GemmRow, OpRow
from cost_models.errors import BadHardware
from cost_models.hardware_toml import (
    PLAIN,
    find_file,
    links_of,
    list_mixed,
    read_toml,
    rows_of,
    table_of,
    tables_of,
    texts_of,
)
from cost_models.library import Library, Protocol
from cost_models.machine import Cluster, CollectiveRow, ContentionRow, Inter, Intra, Level
from cost_models.placement import place
from cost_models.schema import (
    CLUSTER_KEYS,
    DEVICE_KEYS,
    INTER_KEYS,
    INTRA_KEYS,
    LEVEL_KEYS,
    LIBRARY_KEYS,
    PEAK_UNIT,
    PROTOCOL_KEYS,
    read_numbers,
    read_table,
)
from cost_models.units import US

__all__ = ["cluster_of", "load_cluster", "load_device", "parse_cluster", "read_sources"]


def _device(where: str, raw: Mapping[str, Any]) -> Device:
    extra = (
        "peak_tflops",
        "gemm_tiles",
        "kind_efficiency",
        "gemm_table",
        "elementwise_table",
        "op_table",
        *PLAIN,
    )
    fields = read_table(where, raw, DEVICE_KEYS, extra)
    for name in PLAIN:
        texts_of(where, raw, name)
    gemms = rows_of(where, raw, "gemm_table", (int, int, int, int, str, float))
    ops = rows_of(
        where, raw, "op_table", (str, str, str, float, float, int, int, int, int, int, float)
    )
    fields["step_overhead"] = fields["step_overhead"] or 0.0
    return Device(
        **fields,
        peak_flops=read_numbers(
            f"{where} [peak_tflops]", table_of(where, raw, "peak_tflops"), PEAK_UNIT
        ),
        gemm_tiles=tuple((m, n) for m, n in rows_of(where, raw, "gemm_tiles", (int, int))),
        kind_efficiency=read_numbers(f"{where} [kind_efficiency]", raw.get("kind_efficiency", {})),
        gemm_table=tuple(
            GemmRow(batch=b, m=m, n=n, k=k, dtype=d, seconds=s) for b, m, n, k, d, s in gemms
        ),
        elementwise_table=tuple(
            ElementwiseRow(nbytes=n, bandwidth=b)
            for n, b in sorted(rows_of(where, raw, "elementwise_table", (float, float)))
        ),
        op_table=tuple(
            OpRow(
                op=op,
                kind=kind,
                dtype=dtype,
                flops=flops,
                nbytes=nbytes,
                gemm=(b, m, n, k),
                steps=steps,
                seconds=seconds,
            )
            for op, kind, dtype, flops, nbytes, b, m, n, k, steps, seconds in ops
        ),
    )


def _library(where: str, raw: Mapping[str, Any]) -> Library:
    fields = read_table(where, raw, LIBRARY_KEYS, ("protocols", *PLAIN))
    for name in PLAIN:
        texts_of(where, raw, name)
    protocols = []
    for index, table in enumerate(raw.get("protocols", [])):
        at = f"{where} protocol {index + 1}"
        values = read_table(at, table, PROTOCOL_KEYS, ("hop_latency_us",))
        hops = read_numbers(f"{at} [hop_latency_us]", table.get("hop_latency_us"), US)
        protocols.append(Protocol(**values, hop_latency=hops))
    return Library(**fields, protocols=tuple(protocols))


def _part(
    where: str, raw: Mapping[str, Any], folder: str, what: str
) -> tuple[str, Mapping[str, Any]]:
    """The table of a part that is in the file itself or is named there."""
    value = raw.get(what)
    if isinstance(value, Mapping):
        return f"{where} [{what}]", value
    if not isinstance(value, str):
        raise BadHardware(
            f"{where}: missing key {what!r}: give the name of a {what} or a table [{what}]"
        )
    path = find_file(folder, what, value)
    return str(path), read_toml(path)


def load_device(name: str) -> Device:
    """The device of a shipped name or of a file. Raises `UnknownName` or `BadHardware`."""
    path = find_file("devices", "device", name)
    return _device(str(path), read_toml(path))


def _inter(where: str, raw: Mapping[str, Any]) -> Inter | None:
    """The network between nodes, None if the file has none."""
    if "inter" not in raw:
        return None
    table, at = table_of(where, raw, "inter"), f"{where} [inter]"
    levels = tables_of(at, table, "levels")
    return Inter(
        **read_table(at, table, INTER_KEYS, ("levels",)),
        levels=tuple(Level(**read_table(name, level, LEVEL_KEYS)) for name, level in levels),
    )


#: Why a file of unlike nodes is no `Cluster`.
_UNLIKE = (
    "[[nodes]] of unlike kinds, which only a plan in stages can use: name a cluster of one kind"
)


def cluster_of(where: str, raw: Mapping[str, Any]) -> Cluster:
    """The cluster of a file's tables, of one full node; `where` names the file in errors."""
    if "nodes" in raw:
        raise BadHardware(f"{where}: {_UNLIKE}")
    extra = ("device", "library", "intra", "inter", "collective_table", "contention", *PLAIN)
    fields = read_table(where, raw, CLUSTER_KEYS, extra)
    for name in PLAIN:
        texts_of(where, raw, name)
    intra = table_of(where, raw, "intra")
    collectives = rows_of(where, raw, "collective_table", (str, int, int, float, float))
    contention = rows_of(where, raw, "contention", (int, str, float))
    try:
        return Cluster(
            **fields,
            device=_device(*_part(where, raw, "devices", "device")),
            library=_library(*_part(where, raw, "libraries", "library")),
            intra=Intra(
                **read_table(f"{where} [intra]", intra, INTRA_KEYS, ("links",)),
                links=links_of(f"{where} [intra]", intra.get("links", [])),
            ),
            inter=_inter(where, raw),
            collective_table=tuple(
                CollectiveRow(
                    kind=kind, group_size=size, num_groups=groups, nbytes=nbytes, seconds=seconds
                )
                for kind, size, groups, nbytes, seconds in collectives
            ),
            contention=tuple(
                ContentionRow(num_devices=n, kind=kind, slowdown=s) for n, kind, s in contention
            ),
            num_devices=fields["devices_per_node"],
            num_nodes=1,
            node_width=fields["devices_per_node"],
        )
    except BadHardware as error:
        raise error if str(error).startswith(where) else BadHardware(f"{where}: {error}") from error


def load_cluster(
    name_or_path: str, *, num_devices: int | None = None, num_nodes: int | None = None
) -> Cluster:
    """The cluster of a shipped name or of a TOML file, at the size asked for (by default one full
    node).

    `num_devices` alone takes as few nodes as hold them; devices are spread evenly over the nodes.
    Raises `UnknownName` for a name that does not exist, `BadHardware` for a bad file and `BadValue`
    for more devices or nodes than there are.
    """
    if name_or_path in list_mixed():
        raise BadHardware(f"{name_or_path}: {_UNLIKE}")
    path = find_file("clusters", "hardware", str(name_or_path))
    cluster = cluster_of(str(path), read_toml(path))
    devices, nodes, width = place(cluster, num_devices, num_nodes)
    return replace(cluster, num_devices=devices, num_nodes=nodes, node_width=width)


def read_sources(name_or_path: str) -> dict[str, str]:
    """The `[sources]` of a cluster file, key -> text (empty if it has none)."""
    path = find_file("clusters", "hardware", name_or_path)
    return texts_of(str(path), read_toml(path), "sources")


def parse_cluster(text: str, where: str, *, num_devices: int, num_nodes: int) -> Cluster:
    """The cluster of a TOML text made by `cluster_text`; `where` names the text in errors."""
    try:
        cluster = cluster_of(where, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise BadHardware(f"{where}: not TOML ({error})") from error
    devices, nodes, width = place(cluster, num_devices, num_nodes)
    return replace(cluster, num_devices=devices, num_nodes=nodes, node_width=width)
