"""The sections that `plan models` prints: the built-in models with their sizes, and how to give
one of your own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.report.sections import Section, Table

__all__ = ["models_sections"]


def models_sections(record: Mapping[str, Any]) -> tuple[Section, ...]:
    """The sections that `plan models` prints."""
    header = ("", "batch per device", "sizes")
    built_in = [
        Section(
            title=spec["name"], body=(spec["description"], Table(header=header, rows=_sizes(spec)))
        )
        for spec in record["models"]
    ]
    return (*built_in, Section(title="your own", body=(_OWN_MODEL,)))


_OWN_MODEL = (
    "module:function or FILE.py:function; the function returns (model, batch, loss): a "
    "torch.nn.Module, a tuple of tensors "
    "with the target last, and a function of the model's output and the target; --batch, --seq and "
    "--set are passed to it"
)


def _sizes(spec: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    rows = [("default", spec["batch_per_device"], spec["options"])]
    rows += [
        (preset["name"], preset["batch_per_device"], preset["options"])
        for preset in spec["presets"]
    ]
    return tuple(
        (name, str(batch), ", ".join(f"{key}={value}" for key, value in sizes.items()))
        for name, batch, sizes in rows
    )
