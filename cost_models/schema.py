"""The keys of hardware files: the table of each, its unit and the SI field that it becomes.

`read_table` turns one TOML table into field values. It raises `BadHardware`, naming file, table and
key, for a missing, unknown, negative or ill-typed key. `write_table` is its inverse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cost_models.errors import BadHardware
from cost_models.units import GB, GIB, TERA, US

__all__ = [
    "BRIDGE_KEYS", "CLUSTER_KEYS", "DEVICE_KEYS", "INTER_KEYS", "INTRA_KEYS", "LEVEL_KEYS",
    "LIBRARY_KEYS", "MIXED_KEYS", "NODES_KEYS", "PEAK_UNIT", "PROTOCOL_KEYS", "Key", "in_unit",
    "read_numbers", "read_table", "write_table",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a file: `field = type(value * unit)`, at least 0, or more if `positive`. An
    optional key that is missing is None, or `default` if it has one; a key is written only if it
    is not its default."""

    name: str
    field: str
    type: type = float
    unit: float = 1.0
    positive: bool = False
    optional: bool = False
    default: float | bool | None = None


DEVICE_KEYS = (
    Key("name", "name", str),
    Key("memory_gib", "memory", int, GIB, positive=True),
    Key("reserved_memory_gib", "reserved_memory", int, GIB),
    Key("memory_bandwidth_gb_s", "memory_bandwidth", float, GB, positive=True),
    Key("memory_efficiency", "memory_efficiency", positive=True),
    Key("num_sms", "num_sms", int, positive=True),
    Key("launch_overhead_us", "launch_overhead", float, US),
    Key("kernel_overhead_us", "kernel_overhead", float, US),
    Key("gemm_efficiency", "gemm_efficiency", positive=True),
    Key("gemm_half_work_flop", "gemm_half_work"),
    Key("gemm_tile_half_area", "gemm_tile_half_area"),
    Key("gemm_half_k", "gemm_half_k"),
    Key("gemm_k_latency_us", "gemm_k_latency", float, US),
    Key("lstm_step_overhead_us", "lstm_step_overhead", float, US),
    Key("lstm_library", "lstm_library", str, optional=True),
    Key("overlap", "overlap"),
    Key("step_overhead_us", "step_overhead", float, US, optional=True),
)
CLUSTER_KEYS = (
    Key("name", "name", str),
    Key("devices_per_node", "devices_per_node", int, positive=True),
    Key("max_nodes", "max_nodes", int, positive=True),
)
INTRA_KEYS = (
    Key("fabric", "fabric", str),
    Key("link", "link", str),
    Key("bandwidth_gb_s", "bandwidth", float, GB, positive=True),
    Key("efficiency", "efficiency", positive=True),
    Key("overhead_us", "overhead", float, US),
    Key("shared_bandwidth_gb_s", "shared_bandwidth", float, GB, positive=True, optional=True),
    Key("host_bandwidth_gb_s", "host_bandwidth", float, GB, positive=True, optional=True),
    Key("pass_bandwidth_gb_s", "pass_bandwidth", float, GB, positive=True, optional=True),
    Key(
        "in_switch_reduction_efficiency",
        "in_switch_reduction_efficiency",
        positive=True,
        optional=True,
    ),
)
INTER_KEYS = (
    Key("link", "link", str),
    Key("nics_per_node", "nics_per_node", int, positive=True),
    Key("bandwidth_gb_s", "bandwidth", float, GB, positive=True),
    Key("efficiency", "efficiency", positive=True),
    Key("overhead_us", "overhead", float, US),
    Key("pair_bandwidth_gb_s", "pair_bandwidth", float, GB, positive=True, optional=True),
)
LEVEL_KEYS = (
    Key("name", "name", str),
    Key("nodes", "nodes", int, positive=True),
    Key("oversubscription", "oversubscription", positive=True, default=1.0),
    Key("latency_us", "latency", float, US, default=0.0),
    Key("rails", "rails", bool, default=False),
)
MIXED_KEYS = (Key("name", "name", str), Key("library", "library", str, optional=True))
NODES_KEYS = (
    Key("name", "name", str),
    Key("count", "count", int, positive=True),
    Key("cluster", "cluster", str, optional=True),
)
BRIDGE_KEYS = (
    Key("link", "link", str),
    Key("latency_us", "latency", float, US, default=0.0),
    Key("bandwidth_gb_s", "bandwidth", float, GB, positive=True, optional=True),
    Key("pair_bandwidth_gb_s", "pair_bandwidth", float, GB, positive=True, optional=True),
)
LIBRARY_KEYS = (Key("name", "name", str),)
PROTOCOL_KEYS = (
    Key("algorithm", "algorithm", str),
    Key("name", "name", str),
    Key("base_latency_us", "base_latency", float, US),
    Key("bandwidth_share", "bandwidth_share", positive=True),
)
#: Units of the tables whose keys are free (`[device.peak_tflops]` and the like).
PEAK_UNIT = TERA


#: The types of values that are taken as they are, in words.
_WORDS = {str: "a string", bool: "true or false"}


def _number(where: str, key: Key, value: Any) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadHardware(f"{where}: {key.name} must be a number, got {value!r}")
    if value < 0 or (key.positive and value == 0):
        raise BadHardware(
            f"{where}: {key.name} must be {'positive' if key.positive else 'zero or positive'}, got {value}"
        )
    if key.type is int:
        scaled = value * key.unit
        if key.unit == 1.0 and value != int(value):
            raise BadHardware(f"{where}: {key.name} must be a whole number, got {value}")
        return round(scaled)
    return value * key.unit


def read_table(
    where: str, raw: Mapping[str, Any], keys: tuple[Key, ...], extra: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Field values of one table. `extra` are further keys that the caller reads; `where` is
    `FILE [table]` for messages."""
    known = [key.name for key in keys]
    for name in raw:
        if name not in known and name not in extra:
            raise BadHardware(
                f"{where}: unknown key {name!r}, known: {', '.join(sorted((*known, *extra)))}"
            )
    out: dict[str, Any] = {}
    for key in keys:
        if key.name not in raw:
            if _needed(key):
                needed = ", ".join(k.name for k in keys if _needed(k))
                raise BadHardware(f"{where}: missing key {key.name!r}, needed: {needed}")
            out[key.field] = key.default
        elif key.type in _WORDS:
            if not isinstance(raw[key.name], key.type):
                what = _WORDS[key.type]
                raise BadHardware(f"{where}: {key.name} must be {what}, got {raw[key.name]!r}")
            out[key.field] = raw[key.name]
        else:
            out[key.field] = _number(where, key, raw[key.name])
    return out


def _needed(key: Key) -> bool:
    return not key.optional and key.default is None


def read_numbers(where: str, raw: Any, unit: float = 1.0) -> tuple[tuple[str, float], ...]:
    """A table of free names to positive numbers, times `unit`, in the order of the file."""
    if not isinstance(raw, Mapping):
        raise BadHardware(f"{where} must be a table of numbers, got {raw!r}")
    return tuple(
        (name, float(_number(where, Key(name, name, positive=True), value)) * unit)
        for name, value in raw.items()
    )


def in_unit(value: float, unit: float) -> float:
    """The number that gives `value` when multiplied by `unit`, to the last bit if such a number
    exists: files read back as written."""
    near = value / unit
    candidates = (near, math.nextafter(near, math.inf), math.nextafter(near, 0.0))
    return next((x for x in candidates if x * unit == value), near)


def write_table(record: Any, keys: tuple[Key, ...]) -> dict[str, Any]:
    """The inverse of `read_table`: the table that reads back as the fields of `record`."""
    out: dict[str, Any] = {}
    for key in keys:
        value = getattr(record, key.field)
        if value != key.default:
            out[key.name] = (
                value if key.type in _WORDS or key.unit == 1.0 else in_unit(value, key.unit)
            )
    return out
