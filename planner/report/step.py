"""One step in lines and tables: its time in parts, the rates that follow, and its peak memory by
category."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cost_models.memory import MEMORY_HEADROOM
from cost_models.units import format_bytes, format_rate, format_time
from planner.report.sections import Table

__all__ = ["CATEGORY_WORDS", "memory_table", "percent", "time_lines"]

#: The categories of memory in words.
CATEGORY_WORDS = {
    "parameters": "parameters",
    "optimizer": "optimizer state",
    "gradients": "gradients",
    "activations": "activations",
    "gathered": "gathered pieces and cast parameters",
    "temporaries": "temporaries of backward",
    "inputs": "batch and buffers",
}


def time_lines(summary: Mapping[str, Any]) -> tuple[str | Table, ...]:
    """The step time in its parts, and the rates that follow."""
    step = summary["step_time_s"]
    parts = (
        ("compute", "compute_time_s"),
        ("exposed communication", "exposed_communication_time_s"),
        ("idle", "idle_time_s"),
    )
    rows = [(name, format_time(summary[key]), percent(summary[key] / step)) for name, key in parts]
    rows.append(("step (simulated)", format_time(step), ""))
    out: list[str | Table] = [
        Table(header=("time", "", "share"), rows=tuple(rows), right=frozenset({1, 2}))
    ]
    if "samples_per_s" in summary:
        tokens = f", {_rate(summary['tokens_per_s'], 'tokens/s')}"
        shown = tokens if summary["tokens_per_s"] != summary["samples_per_s"] else ""
        rates = f"{_rate(summary['samples_per_s'], 'samples/s')}{shown}"
        out.append(f"{rates}; MFU {percent(summary['mfu'])} of the {summary['dtype']} peak")
    if "padding" in summary:
        padded = summary["padding"]
        saved = percent(1 - padded["step_time_s"] / step)
        out.append(
            f"--set {padded['setting']} would make the step {saved} shorter: "
            f"{format_time(padded['step_time_s'])} on the same mesh"
        )
    return tuple(out)


def _rate(per_second: float, unit: str) -> str:
    """A rate such as `926 k samples/s`: the number has the prefix, since the unit is a word."""
    return " ".join(format_rate(per_second, f" {unit}").split())


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def memory_table(summary: Mapping[str, Any]) -> tuple[str | Table, ...]:
    """Memory at its peak by category, against the device's capacity."""
    capacity = summary["memory_capacity_bytes"]
    held = dict(summary["memory_bytes"])
    total = held.pop("total")
    rows: list[tuple[str, ...]] = [
        (CATEGORY_WORDS[name], format_bytes(nbytes), percent(nbytes / capacity))
        for name, nbytes in held.items()
        if nbytes
    ]
    rows.append(("peak", format_bytes(total), percent(total / capacity)))
    allowed = summary["memory_allowed_bytes"]
    if allowed < capacity:
        rows.append(("allowed", format_bytes(allowed), percent(allowed / capacity)))
    rows.append(("usable", format_bytes(capacity), "fits" if summary["fits"] else "DOES NOT FIT"))
    table = Table(
        header=("at the peak", "", "of usable"), rows=tuple(rows), right=frozenset({1, 2})
    )
    return (table, *_shared_words(summary), *_nearly_full(total / capacity, summary["fits"]))


def _shared_words(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """The shared memory that a rank sends through, beside its own memory."""
    nbytes = summary.get("shared_memory_bytes", 0)
    return (
        (
            f"in addition, {format_bytes(nbytes)} of send buffers per device, shared by the "
            "ranks of a machine",
        )
        if nbytes
        else ()
    )


def _nearly_full(share: float, fits: bool) -> tuple[str, ...]:
    """A warning if a plan fits as predicted but may not when it runs."""
    if not fits or share <= 1 - MEMORY_HEADROOM:
        return ()
    told = (
        f"{percent(share)} of the usable memory: allocator fragmentation may make the run exceed it"
    )
    return (f"{told}; --memory-headroom {MEMORY_HEADROOM:g}, the default, keeps that share free",)
