"""The picture of memory over a pipeline's step, a line for each place. PNG bytes, drawn without a
display."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cost_models.units import format_bytes
from planner.report.memory_picture import byte_unit, draw_capacity
from planner.report.timeline_picture import png, time_unit

__all__ = ["draw_place_memory"]

#: The most places that have a line.
_LINES = 8


def draw_place_memory(
    memory: Sequence[Sequence[tuple[float, int]]], step: float, capacity: int, title: str
) -> bytes:
    """A PNG of what every place holds over the step, and of its peak, against the capacity.
    `memory[place]` are the (seconds, bytes per device) from which on it holds so much."""
    places = sorted({round(x) for x in np.linspace(0, len(memory) - 1, min(len(memory), _LINES))})
    peaks = [max(nbytes for _, nbytes in samples) for samples in memory]
    scale, unit = byte_unit(float(max(peaks)))
    seconds, seconds_unit = time_unit(step)
    figure = Figure(figsize=(12, 4.4), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(2.6, 1))
    colours = [colormaps["viridis"](x) for x in np.linspace(0.0, 0.9, len(places))]
    for place, colour in zip(places, colours, strict=True):
        times = [time * seconds for time, _ in memory[place]]
        held = [nbytes / scale for _, nbytes in memory[place]]
        left.step(
            [*times, step * seconds], [*held, held[-1]],
            where="post", color=colour, linewidth=1.2, label=f"rank {place}",
        )  # fmt: skip
    left.set_xlim(0, step * seconds or 1.0)
    left.set_xlabel(f"time ({seconds_unit})")
    left.set_ylabel(f"memory held per device ({unit})")
    draw_capacity(left, float(max(peaks)), capacity, scale)
    names = [f"rank {place}" for place in places][::-1]
    values = [peaks[place] / scale for place in places][::-1]
    right.barh(names, values, color=colours[::-1])
    for row, place in enumerate(places[::-1]):
        right.text(values[row], row, f" {format_bytes(peaks[place])}", va="center", fontsize=9)
    right.set_xlim(0, max(values) * 1.35 or 1.0)
    right.set_xlabel(f"at the peak ({unit})")
    for side in ("top", "right"):
        right.spines[side].set_visible(False)
    most = max(peaks)
    figure.suptitle(
        f"{title}: peak {format_bytes(float(most))} of {format_bytes(capacity)} per device "
        f"({100 * most / capacity:.3g} %), simulated",
        fontsize=11,
    )
    return png(canvas)
