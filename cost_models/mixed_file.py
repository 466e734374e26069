"""Hardware files of unlike nodes: from TOML to `MixedCluster`. A file has `name`, one `[[nodes]]`
for each kind and, between kinds whose networks differ, `[[bridges]]`.

    load_machine("a100-v100")               all devices of the file
    load_machine("a100-v100", num_devices=20)  its first 20: groups are filled in their order
    load_machine("dgx-h100")                a `Cluster`, as `load_cluster`
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from cost_models.cluster import cluster_of, load_cluster
from cost_models.errors import BadHardware, BadValue, unknown_name
from cost_models.hardware_toml import (
    PLAIN,
    find_file,
    list_clusters,
    list_mixed,
    read_toml,
    tables_of,
    texts_of,
)
from cost_models.machine import Cluster
from cost_models.mixed import Bridge, Machine, MixedCluster
from cost_models.placement import place
from cost_models.schema import BRIDGE_KEYS, MIXED_KEYS, NODES_KEYS, read_table

__all__ = ["load_machine", "load_mixed"]


def load_machine(name_or_path: str, *, num_devices: int | None = None) -> Machine:
    """The cluster of a shipped name or of a file, of one kind or of several; by default one full
    node of one kind, or all nodes of several.

    Raises `UnknownName` for a name that does not exist, `BadHardware` for a bad file and `BadValue`
    for more devices than there are.
    """
    if name_or_path in list_clusters():
        return load_cluster(name_or_path, num_devices=num_devices)
    if name_or_path in list_mixed():
        return load_mixed(name_or_path, num_devices=num_devices)
    known = (*list_clusters(), *list_mixed())
    if not name_or_path.endswith(".toml") and "/" not in name_or_path:
        raise unknown_name("hardware", name_or_path, known)
    if "nodes" in read_toml(find_file("mixed", "hardware", name_or_path)):
        return load_mixed(name_or_path, num_devices=num_devices)
    return load_cluster(name_or_path, num_devices=num_devices)


def load_mixed(name_or_path: str, *, num_devices: int | None = None) -> MixedCluster:
    """The cluster of unlike nodes of a shipped name or of a file; `num_devices` takes the first
    ones. Raises as `load_machine`."""
    path = find_file("mixed", "hardware", name_or_path)
    raw, where = read_toml(path), str(path)
    fields = read_table(where, raw, MIXED_KEYS, ("nodes", "bridges", *PLAIN))
    for name in PLAIN:
        texts_of(where, raw, name)
    groups = [_group(at, table, raw) for at, table in tables_of(where, raw, "nodes")]
    _check_names(where, groups)
    bridges = dict(_bridge(at, table, groups) for at, table in tables_of(where, raw, "bridges"))
    taken = _first(fields["name"], groups, num_devices)
    try:
        return MixedCluster(
            name=fields["name"],
            groups=taken,
            bridges=tuple(
                made
                for pair in itertools.combinations(range(len(taken)), 2)
                for made in [bridges.get(pair) or _common(taken, pair)]
                if made is not None
            ),
        )
    except BadHardware as error:
        raise BadHardware(f"{where}: {error}") from error


def _group(where: str, table: Mapping[str, Any], file: Mapping[str, Any]) -> Cluster:
    """The nodes of one `[[nodes]]`: `cluster`, the name of a cluster or the path of its file, or
    the keys of a cluster's file."""
    own = {key.name for key in NODES_KEYS}
    rest = {key: value for key, value in table.items() if key not in own}
    fields = read_table(where, {k: v for k, v in table.items() if k in own}, NODES_KEYS)
    if fields["cluster"] is not None:
        if rest:
            raise BadHardware(
                f"{where}: {', '.join(rest)} beside cluster = {fields['cluster']!r}: give either the "
                "name of a cluster or all of its keys"
            )
        source = find_file("clusters", "cluster", fields["cluster"])
        found = cluster_of(str(source), read_toml(source))
    else:
        given = {"name": fields["name"], "max_nodes": fields["count"]}
        given |= {"library": file["library"]} if "library" in file else {}
        found = cluster_of(where, {**given, **rest})
    devices, nodes, width = place(found, None, fields["count"])
    return replace(
        found, name=fields["name"], num_devices=devices, num_nodes=nodes, node_width=width
    )


def _check_names(where: str, groups: list[Cluster]) -> None:
    names = [group.name for group in groups]
    if len(groups) < 2:
        raise BadHardware(
            f"{where}: {len(groups)} [[nodes]]: give one for each kind, two or more, or a file "
            "without [[nodes]] for nodes of one kind"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadHardware(f"{where}: two [[nodes]] are called {twice!r}: give each its own name")


def _bridge(
    where: str, table: Mapping[str, Any], groups: list[Cluster]
) -> tuple[tuple[int, int], Bridge]:
    """The bridge of one `[[bridges]]`, by the groups that it joins."""
    fields = read_table(where, table, BRIDGE_KEYS, ("groups",))
    names = table.get("groups")
    known = tuple(group.name for group in groups)
    if not isinstance(names, list) or len(names) != 2 or names[0] == names[1]:
        raise BadHardware(
            f"{where}: groups must be the names of two [[nodes]], got {names!r}, known: "
            f"{', '.join(known)}"
        )
    for name in names:
        if name not in known:
            raise BadHardware(f"{where}: {unknown_name('group of nodes', str(name), known)}")
    one, other = sorted(known.index(name) for name in names)
    return (one, other), Bridge(groups=(one, other), **fields)


def _common(groups: tuple[Cluster, ...], pair: tuple[int, int]) -> Bridge | None:
    """The fabric that two groups are both on, if their NICs have links of the same kind."""
    one, other = (groups[index].inter for index in pair)
    if one is None or other is None or one.link != other.link:
        return None
    limits = [rate for rate in (one.pair_bandwidth, other.pair_bandwidth) if rate is not None]
    return Bridge(groups=pair, link=one.link, pair_bandwidth=min(limits, default=None))


def _first(name: str, groups: list[Cluster], num_devices: int | None) -> tuple[Cluster, ...]:
    """The groups with their first `num_devices` devices in all."""
    most = sum(group.num_devices for group in groups)
    wanted = most if num_devices is None else num_devices
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= most:
        raise BadValue(f"{name!r} has 1 to {most} devices, but {wanted!r} were asked for")
    return tuple(_taken(wanted, groups))


def _taken(wanted: int, groups: list[Cluster]) -> Iterator[Cluster]:
    for group in groups:
        count = min(wanted, group.num_devices)
        if count == group.num_devices:
            yield group
        elif count:
            devices, nodes, width = place(group, count, None)
            yield replace(group, num_devices=devices, num_nodes=nodes, node_width=width)
        wanted -= count
