"""The picture of a comparison: predicted beside measured by kind of op, and a point per event."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure

from runtime.compare.comparison import Comparison

__all__ = ["picture"]

_PREDICTED, _MEASURED = "#2a78d6", "#eb6834"
_INK, _GRID = "#333333", "#dddddd"


def picture(comparison: Comparison) -> bytes:
    """The picture as the bytes of a PNG."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    bars, points = figure.subplots(1, 2, width_ratios=(3, 2))
    _bars(bars, comparison)
    _points(points, comparison)
    figure.suptitle(
        f"{comparison.model} on {comparison.num_ranks} ranks ({comparison.mesh}): predicted "
        f"{comparison.predicted_step_time_s * 1e3:.1f} ms, measured "
        f"{comparison.measured_step_time_s * 1e3:.1f} ms per step ({comparison.error:+.0%})",
        color=_INK,
        fontsize=11,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _bars(axes: Any, comparison: Comparison) -> None:
    """Draws a pair of bars per kind, the longest at the top; kinds that never ran are left out."""
    rows = [row for row in comparison.by_kind if max(row.measured_s, row.predicted_s) > 0][::-1]
    for index, row in enumerate(rows):
        label = {"label": "predicted"} if index == 0 else {}
        axes.barh(index + 0.2, row.predicted_s * 1e3, height=0.38, color=_PREDICTED, **label)
        label = {"label": "measured"} if index == 0 else {}
        axes.barh(index - 0.2, row.measured_s * 1e3, height=0.38, color=_MEASURED, **label)
    axes.set_yticks(range(len(rows)), [row.kind for row in rows])
    axes.set_xlabel("milliseconds per step")
    axes.grid(axis="x", color=_GRID)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _points(axes: Any, comparison: Comparison) -> None:
    """Draws every op and collective that takes a microsecond or more, on logarithmic axes with the
    diagonal of no error."""
    events = comparison.events
    shown = events[(events["measured_s"] > 1e-6) & (events["predicted_s"] > 1e-7)]
    for stream, colour, marker in (("compute", _PREDICTED, "o"), ("communication", _MEASURED, "^")):
        part = shown[shown["stream"] == stream]
        if len(part):
            axes.scatter(
                part["measured_s"] * 1e3,
                part["predicted_s"] * 1e3,
                s=16,
                color=colour,
                marker=marker,
                alpha=0.6,
                label=stream,
            )
    if len(shown):
        values = [*shown["measured_s"], *shown["predicted_s"]]
        ends = [min(values) * 1e3, max(values) * 1e3]
        axes.plot(ends, ends, color=_INK, linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend(frameon=False)
    axes.set_xlabel("measured ms per event")
    axes.set_ylabel("predicted ms per event")
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
