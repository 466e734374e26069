"""The picture of memory over a step, by category, and of its peak. PNG bytes, drawn without a
display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cost_models.units import format_bytes
from planner.report.timeline_picture import OTHER, png, time_unit

__all__ = ["byte_unit", "draw_capacity", "draw_memory"]


_CATEGORIES = {
    "parameters": "#0072b2",
    "optimizer": "#56b4e9",
    "gradients": "#009e73",
    "activations": "#e69f00",
    "gathered": "#d55e00",
    "temporaries": "#f0e442",
    "inputs": "#999999",
}
#: A capacity line is drawn only if the peak reaches this share of it; else it would flatten the
#: rest of the picture.
_NEAR = 0.3


def draw_memory(
    times: Sequence[float],
    held: Mapping[str, Sequence[int]],
    step: float,
    capacity: int,
    title: str,
) -> bytes:
    """A PNG of memory over the step, by category, and of the categories at its peak, against the
    capacity.

    `held[category][i]` are the bytes from `times[i]` on.
    """
    table = np.array([held[name] for name in held], dtype=float)
    total = table.sum(axis=0)
    at = int(total.argmax())
    scale, unit = byte_unit(float(total[at]))
    seconds, seconds_unit = time_unit(step)
    figure = Figure(figsize=(12, 4.4), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
    edges = np.append(np.array(times), step) * seconds
    colours = [_CATEGORIES.get(name, OTHER) for name in held]
    left.stackplot(
        edges,
        np.append(table, table[:, -1:], axis=1) / scale,
        colors=colours,
        step="post",
        linewidth=0,
    )
    left.axvline(edges[at], color="#555555", linewidth=0.8, linestyle=":")
    left.set_xlim(0, step * seconds or 1.0)
    left.set_xlabel(f"time ({seconds_unit})")
    left.set_ylabel(f"memory held ({unit})")
    draw_capacity(left, float(total[at]), capacity, scale)
    _bars(right, {name: float(values[at]) for name, values in held.items()}, unit, scale)
    share = 100 * float(total[at]) / capacity
    figure.suptitle(
        f"{title}: peak {format_bytes(float(total[at]))} of {format_bytes(capacity)} per device "
        f"({share:.3g} %), simulated",
        fontsize=11,
    )
    return png(canvas)


def byte_unit(nbytes: float) -> tuple[float, str]:
    """The bytes of the unit in which a number of bytes is drawn, and its name."""
    powers = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))
    return next(((size, name) for size, name in powers if nbytes >= size), (1.0, "B"))


def draw_capacity(axes: Axes, peak: float, capacity: int, scale: float) -> None:
    """The line of the usable memory, if the peak comes near it; the scale of the axis."""
    if peak >= _NEAR * capacity:
        axes.axhline(capacity / scale, color="#cc0000", linewidth=1.2)
        axes.text(
            0.01,
            capacity / scale,
            f"usable {format_bytes(capacity)}",
            color="#cc0000",
            fontsize=9,
            va="bottom",
            transform=axes.get_yaxis_transform(),
        )
        axes.set_ylim(0, max(peak, capacity) / scale * 1.1)
    else:
        axes.set_ylim(0, peak / scale * 1.1)


def _bars(axes: Axes, peak: Mapping[str, float], unit: str, scale: float) -> None:
    """The categories at the peak, the first on top; in the same colours, which makes it the
    legend too."""
    names = list(peak)[::-1]
    values = [peak[name] / scale for name in names]
    axes.barh(names, values, color=[_CATEGORIES.get(name, OTHER) for name in names])
    for row, name in enumerate(names):
        axes.text(
            values[row],
            row,
            f" {format_bytes(peak[name])}" if peak[name] else " -",
            va="center",
            fontsize=9,
        )
    axes.set_xlim(0, max(values) * 1.35 or 1.0)
    axes.set_xlabel(f"at the peak ({unit})")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
