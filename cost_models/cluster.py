"""Hardware files: from TOML to `Device`, `Library` and `Cluster`, and back. Units end here; errors
name the file and the key.

    load_cluster("dgx-h100", num_devices=64)      8 nodes of 8
    load_cluster("my_machine.toml", num_nodes=2)  a file of your own
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from cost_models.atomic_write import write_atomically
from cost_models.device import Device, ElementwiseRow, GemmRow, OpRow
from cost_models.errors import BadHardware, unknown_name
from cost_models.library import Library, Protocol
from cost_models.machine import Cluster, CollectiveRow, ContentionRow, Inter, Intra, Link
from cost_models.placement import place
from cost_models.schema import (
    CLUSTER_KEYS,
    DEVICE_KEYS,
    INTER_KEYS,
    INTRA_KEYS,
    LIBRARY_KEYS,
    PEAK_UNIT,
    PROTOCOL_KEYS,
    in_unit,
    read_numbers,
    read_table,
    write_table,
)
from cost_models.units import US

__all__ = [
    "Cluster", "CollectiveRow", "ContentionRow", "Device", "ElementwiseRow", "GemmRow", "Inter",
    "Intra", "Library", "Link", "OpRow", "Protocol", "cluster_text", "list_clusters",
    "list_devices", "load_cluster", "load_device", "parse_cluster", "read_sources", "write_cluster",
]  # fmt: skip

HARDWARE = Path(__file__).parent / "hardware"
_PLAIN = ("sources", "provenance")


def _names(folder: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (HARDWARE / folder).glob("*.toml")))


def list_clusters() -> tuple[str, ...]:
    """The names of the clusters that come with the package."""
    return _names("clusters")


def list_devices() -> tuple[str, ...]:
    """The names of the devices that come with the package."""
    return _names("devices")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadHardware(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadHardware(f"{path}: not a TOML file ({error})") from error


def _find(folder: str, what: str, name: str) -> Path:
    """The file of a shipped name, or the path itself if `name` is a path."""
    if name.endswith(".toml") or os.sep in name:
        return Path(name)
    if name not in _names(folder):
        raise unknown_name(what, name, _names(folder))
    return HARDWARE / folder / f"{name}.toml"


def _table(where: str, raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if not isinstance(raw.get(name), Mapping):
        raise BadHardware(f"{where}: missing table [{name}]")
    value: Mapping[str, Any] = raw[name]
    return value


def _rows(
    where: str, raw: Mapping[str, Any], name: str, types: tuple[type, ...]
) -> list[tuple[Any, ...]]:
    """The rows of a measured table: lists of the given types, numbers positive."""
    rows = []
    for row in raw.get(name, []):
        fits = isinstance(row, list) and len(row) == len(types)
        if not fits or not all(
            isinstance(v, str) if t is str else _is_positive(v)
            for v, t in zip(row, types, strict=True)
        ):
            expected = ", ".join("string" if t is str else "positive number" for t in types)
            raise BadHardware(f"{where}: a row of {name} must be [{expected}], got {row!r}")
        rows.append(tuple(t(v) for v, t in zip(row, types, strict=True)))
    return rows


def _links(where: str, rows: Any) -> tuple[tuple[int, int, int], ...]:
    """The direct links of a mesh: `[a, b, bricks]`."""
    for row in rows:
        if not (
            isinstance(row, list) and len(row) == 3 and all(type(v) is int and v >= 0 for v in row)
        ):
            raise BadHardware(
                f"{where}: a link must be [local device, local device, bricks], got {row!r}"
            )
    return tuple((a, b, bricks) for a, b, bricks in rows)


def _is_positive(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    )


def _device(where: str, raw: Mapping[str, Any]) -> Device:
    extra = (
        "peak_tflops",
        "gemm_tiles",
        "kind_efficiency",
        "gemm_table",
        "elementwise_table",
        "op_table",
        *_PLAIN,
    )
    fields = read_table(where, raw, DEVICE_KEYS, extra)
    for name in _PLAIN:
        _texts(where, raw, name)
    gemms = _rows(where, raw, "gemm_table", (int, int, int, int, str, float))
    ops = _rows(
        where, raw, "op_table", (str, str, str, float, float, int, int, int, int, int, float)
    )
    fields["step_overhead"] = fields["step_overhead"] or 0.0
    return Device(
        **fields,
        peak_flops=read_numbers(
            f"{where} [peak_tflops]", _table(where, raw, "peak_tflops"), PEAK_UNIT
        ),
        gemm_tiles=tuple((m, n) for m, n in _rows(where, raw, "gemm_tiles", (int, int))),
        kind_efficiency=read_numbers(f"{where} [kind_efficiency]", raw.get("kind_efficiency", {})),
        gemm_table=tuple(
            GemmRow(batch=b, m=m, n=n, k=k, dtype=d, seconds=s) for b, m, n, k, d, s in gemms
        ),
        elementwise_table=tuple(
            ElementwiseRow(nbytes=n, bandwidth=b)
            for n, b in sorted(_rows(where, raw, "elementwise_table", (float, float)))
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
    fields = read_table(where, raw, LIBRARY_KEYS, ("protocols", *_PLAIN))
    for name in _PLAIN:
        _texts(where, raw, name)
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
    path = _find(folder, what, value)
    return str(path), _read(path)


def load_device(name: str) -> Device:
    """The device of a shipped name or of a file. Raises `UnknownName` or `BadHardware`."""
    path = _find("devices", "device", name)
    return _device(str(path), _read(path))


def _cluster(where: str, raw: Mapping[str, Any]) -> Cluster:
    """The cluster of a file, of one full node."""
    extra = ("device", "library", "intra", "inter", "collective_table", "contention", *_PLAIN)
    fields = read_table(where, raw, CLUSTER_KEYS, extra)
    for name in _PLAIN:
        _texts(where, raw, name)
    intra = _table(where, raw, "intra")
    inter = raw.get("inter")
    rows = _rows(where, raw, "collective_table", (str, int, int, float, float))
    contention = _rows(where, raw, "contention", (int, str, float))
    try:
        return Cluster(
            **fields,
            device=_device(*_part(where, raw, "devices", "device")),
            library=_library(*_part(where, raw, "libraries", "library")),
            intra=Intra(
                **read_table(f"{where} [intra]", intra, INTRA_KEYS, ("links",)),
                links=_links(f"{where} [intra]", intra.get("links", [])),
            ),
            inter=None
            if inter is None
            else Inter(**read_table(f"{where} [inter]", inter, INTER_KEYS)),
            collective_table=tuple(
                CollectiveRow(
                    kind=kind, group_size=size, num_groups=groups, nbytes=nbytes, seconds=seconds
                )
                for kind, size, groups, nbytes, seconds in rows
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
    path = _find("clusters", "hardware", str(name_or_path))
    cluster = _cluster(str(path), _read(path))
    devices, nodes, width = place(cluster, num_devices, num_nodes)
    return replace(cluster, num_devices=devices, num_nodes=nodes, node_width=width)


def read_sources(name_or_path: str) -> dict[str, str]:
    """The `[sources]` of a cluster file, key -> text (empty if it has none)."""
    path = _find("clusters", "hardware", name_or_path)
    return _texts(str(path), _read(path), "sources")


def _texts(where: str, raw: Mapping[str, Any], name: str) -> dict[str, str]:
    """A table of texts, `[sources]` or `[provenance]`. Raises `BadHardware` for a value that is
    not a text."""
    found = raw.get(name, {})
    if not isinstance(found, Mapping):
        raise BadHardware(f"{where}: {name} must be a table of strings, got {found!r}")
    for key, value in found.items():
        if not isinstance(value, str):
            raise BadHardware(
                f"{where} [{name}]: {key} must be a string, got {value!r}: put it in quotes"
            )
    return dict(found)


def _without_empty(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table without empty lists, which would look like something forgotten in a file."""
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


def parse_cluster(text: str, where: str, *, num_devices: int, num_nodes: int) -> Cluster:
    """The cluster of a TOML text made by `cluster_text`; `where` names the text in errors."""
    try:
        cluster = _cluster(where, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise BadHardware(f"{where}: not TOML ({error})") from error
    devices, nodes, width = place(cluster, num_devices, num_nodes)
    return replace(cluster, num_devices=devices, num_nodes=nodes, node_width=width)


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
    table["device"] = _device_table(cluster.device)
    table["library"] = _library_table(cluster.library)
    return tomli_w.dumps(_without_empty(table))
