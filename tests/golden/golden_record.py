"""The golden record of a plan, and its file: a line a key and a line an item, so that a
difference is read item by item."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.plans.plan_file import plan_text
from planner.program.text import program_text
from planner.search.search import Found

__all__ = ["path_of", "record_of", "text_of"]

HERE = Path(__file__).parent


def path_of(name: str) -> Path:
    return HERE / f"{name}.json"


def record_of(found: Found) -> dict[str, Any]:
    """The figures, the baselines, every choice and the program of a plan; nothing of how long
    planning took."""
    body = json.loads(plan_text(found.plan))
    summary = body["summary"]
    return {
        "mesh": dict(zip(body["mesh"]["names"], body["mesh"]["sizes"], strict=True)),
        "step_time_s": _rounded(summary["step_time_s"]),
        "bound_s": _rounded(body["solver"]["bound"]),
        "memory_bytes": summary["memory_bytes"],
        "bucket_bytes": body["bucket_bytes"],
        "recast": body["recast"],
        "standard_name": summary.get("standard_name", ""),
        "baselines": [
            {**row, "step_time_s": _rounded(row["step_time_s"])} for row in body["alternatives"]
        ],
        "options": [None if options is None else " ".join(options) for options in body["options"]],
        "parameters": [" ".join(options) for options in body["parameters"]],
        "hubs": [{**hub, "values": len(hub["values"])} for hub in body["hubs"]],
        "program": program_text(found.program).splitlines(),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds:.6g}")


def text_of(record: Mapping[str, Any]) -> str:
    """The record as JSON: one line for a key, or for each item of a list."""
    return (
        "{\n"
        + ",\n".join(f" {json.dumps(key)}: {_value(value)}" for key, value in record.items())
        + "\n}\n"
    )


def _value(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"  {json.dumps(item)}" for item in value) + "\n ]"
    return json.dumps(value)
