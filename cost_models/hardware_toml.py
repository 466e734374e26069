"""Finds hardware files and reads their TOML: tables, rows and texts, each checked. Errors name the
file and the key."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cost_models.errors import BadHardware, unknown_name

__all__ = [
    "PLAIN",
    "find_file",
    "links_of",
    "list_clusters",
    "list_devices",
    "list_mixed",
    "read_toml",
    "rows_of",
    "table_of",
    "tables_of",
    "texts_of",
]


#: Where the files that come with the package lie.
HARDWARE = Path(__file__).parent / "hardware"
#: The tables of texts that every file may have.
PLAIN = ("sources", "provenance")


def _names(folder: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (HARDWARE / folder).glob("*.toml")))


def list_clusters() -> tuple[str, ...]:
    """The names of the clusters that come with the package."""
    return _names("clusters")


def list_mixed() -> tuple[str, ...]:
    """The names of the clusters of unlike nodes that come with the package."""
    return _names("mixed")


def list_devices() -> tuple[str, ...]:
    """The names of the devices that come with the package."""
    return _names("devices")


def read_toml(path: Path) -> dict[str, Any]:
    """The file as parsed. Raises `BadHardware` if it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadHardware(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadHardware(f"{path}: not a TOML file ({error})") from error


def find_file(folder: str, what: str, name: str) -> Path:
    """The file of a shipped name, or the path itself if `name` is a path."""
    if name.endswith(".toml") or os.sep in name:
        return Path(name)
    if name not in _names(folder):
        raise unknown_name(what, name, _names(folder))
    return HARDWARE / folder / f"{name}.toml"


def table_of(where: str, raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The table `name`, which the file must have."""
    if not isinstance(raw.get(name), Mapping):
        raise BadHardware(f"{where}: missing table [{name}]")
    value: Mapping[str, Any] = raw[name]
    return value


def tables_of(where: str, raw: Mapping[str, Any], name: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The tables [[name]], which the file may have, each with what to call it in errors."""
    found = raw.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise BadHardware(f"{where}: {name} must be tables [[{name}]], got {found!r}")
    return [(f"{where} {name} {index + 1}", one) for index, one in enumerate(found)]


def rows_of(
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


def links_of(where: str, rows: Any) -> tuple[tuple[int, int, int], ...]:
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


def texts_of(where: str, raw: Mapping[str, Any], name: str) -> dict[str, str]:
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
