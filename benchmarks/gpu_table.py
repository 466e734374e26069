"""The results of `gpu_check.py` as lines of text."""

from __future__ import annotations

from typing import Any

from gpu_cases import CASES

__all__ = ["table"]

_HEAD = (
    "model",
    "ours",
    "shipped says",
    "calibrated says",
    "eager",
    "compiled",
    "peak",
    "predicted",
    "eager's",
)


def table(record: dict[str, Any]) -> str:
    """A row a model: measured step, what was predicted of it and how far off, plain torch,
    `torch.compile`; peak memory likewise."""
    measured = [
        model for model in CASES if any(name.startswith(f"{model}/") for name in record["parts"])
    ]
    rows = [_HEAD, *(_row(model, record["parts"]) for model in measured)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    counts = record["parts"].get("tests", {}).get("counts")
    told = "tests: " + (
        ", ".join(f"{n} {word}" for word, n in counts.items()) if counts else "not run"
    )
    left = [
        f"{name}: {found.get('failed') or found['skipped']}"
        for name, found in record["skipped"].items()
    ]
    return "\n".join(
        [f"{record['card']}, {record['date']}, commit {record['commit']}", *lines, told, *left]
    )


def _row(model: str, parts: dict[str, Any]) -> tuple[str, ...]:
    ours, eager, compiled = (
        parts.get(f"{model}/{measure}", {}) for measure in ("ours", "eager", "compile")
    )
    predicted = ours.get("predicted", {})
    return (
        model,
        _ms(ours.get("step_s")),
        *(_told(predicted.get(kind)) for kind in ("shipped", "calibrated")),
        _against(eager, ours),
        _against(compiled, ours),
        _mib(ours.get("peak_bytes")),
        _mib(ours.get("predicted_peak_bytes")),
        _mib(eager.get("peak_bytes")),
    )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f} ms"


def _told(found: dict[str, Any] | None) -> str:
    return "-" if found is None else f"{_ms(found['step_s'])} ({found['error']:+.0%})"


def _against(found: dict[str, Any], ours: dict[str, Any]) -> str:
    if "step_s" not in found:
        return "-"
    return _ms(found["step_s"]) + (
        f" ({found['step_s'] / ours['step_s']:.2f} x ours)" if "step_s" in ours else ""
    )


def _mib(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes / 2**20:,.0f} MiB"
