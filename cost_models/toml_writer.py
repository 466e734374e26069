"""A strict TOML writer for what hardware files hold: texts, numbers, lists of them, tables, and lists of tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["to_toml"]


def _value(value: Any) -> str:
    """A scalar, a list on one line (rows of a table on one line each) or an inline table."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        assert math.isfinite(value), value
        return repr(value)
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], list | tuple):
            return "[\n" + "".join(f"    {_value(row)},\n" for row in value) + "]"
        return f"[{', '.join(map(_value, value))}]"
    assert isinstance(value, Mapping), f"cannot write {value!r} as TOML"
    return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"


def _key(key: str) -> str:
    return key if key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key) else json.dumps(key, ensure_ascii=False)


def _is_table_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def to_toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """`table` as TOML text that `tomllib.loads` reads back equal (tuples as lists, empty lists left out)."""
    lines = []
    for key, value in table.items():
        if not isinstance(value, Mapping) and not _is_table_list(value) and value != []:
            lines.append(f"{_key(key)} = {_value(value)}\n")
    for key, value in table.items():
        name = f"{prefix}{_key(key)}"
        if isinstance(value, Mapping):
            lines.append(f"\n[{name}]\n{to_toml(value, name + '.')}")
        elif _is_table_list(value):
            lines.extend(f"\n[[{name}]]\n" + "".join(f"{_key(k)} = {_value(v)}\n" for k, v in row.items()) for row in value)
    return "".join(lines)
