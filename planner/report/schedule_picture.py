"""The picture of a schedule: which place runs what for which microbatch, and where it waits. PNG
bytes, drawn without a display."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cost_models.units import format_time
from planner.report.timeline_picture import png, time_unit
from planner.schedules.schedule import BACKWARD, FORWARD, INPUT, WEIGHT
from planner.schedules.timing import Timing

__all__ = ["draw_schedule"]

#: Told apart by colour-blind readers too, and in grey. Source: Okabe and Ito, "Color Universal
#: Design", 2008.
_COLOURS = {FORWARD: "#0072b2", BACKWARD: "#e69f00", INPUT: "#e69f00", WEIGHT: "#009e73"}
_WORDS = {
    FORWARD: "forward",
    BACKWARD: "backward",
    INPUT: "backward, inputs",
    WEIGHT: "backward, weights",
}
#: What runs before and after the actions, and where a place waits.
_FIXED, _WAITS = "#7f7f7f", "#f0f0f0"
#: A later stage of a place has this share of white added, per stage.
_LIGHTER = 0.45
#: The most places that are drawn: a taller picture cannot be read.
_ROWS = 32
#: A number is written if its box has this share of the picture's width for every digit.
_DIGIT = 0.0075
#: If boxes are narrower than numbers, the first and the last of the step are shown again below, as
#: wide as this many of the short actions; not with more places than `_FEW`.
_CLOSE, _FEW = 24, 16
#: Boxes have a white edge if a row has no more than this.
_EDGED = 120


class _Box(NamedTuple):
    """What a place does from a time to another: a body or "", the stage's number at its place, and
    the microbatch as text."""

    row: int
    start: float
    end: float
    body: str
    chunk: int
    text: str


def draw_schedule(timing: Timing, title: str) -> bytes:
    """A PNG with a row for each place, a box for each action with its microbatch, and how long each
    place waits; where boxes are too narrow for numbers, the first and the last of the step again
    below."""
    places = _shown(len(timing.starts))
    boxes = [box for row, place in enumerate(places) for box in _boxes(timing, place, row)]
    whole = (0.0, timing.step_time or 1.0)
    windows = _close_ups(timing) if len(places) <= _FEW else []
    height = 0.75 + (0.42 if len(places) <= _FEW else 0.3) * len(places)
    size = (13.0, 1.5 + height * (2 if windows else 1))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2 if windows else 1, max(1, len(windows)))
    top = figure.add_subplot(grid[0, :])
    _draw(top, timing, boxes, places, whole, 1.0)
    _write_waits(top, timing, places)
    for column, window in enumerate(windows):
        below = figure.add_subplot(grid[1, column])
        _draw(below, timing, boxes, places, window, 1 / len(windows))
        scale, _ = time_unit(timing.step_time)
        for axes in (top, below):
            frame = (window[0] * scale, window[1] * scale)
            axes.axvspan(*frame, fill=False, edgecolor="#cc0000", linewidth=1.2, zorder=4)
    _legend(figure, timing)
    figure.suptitle(
        f"{title}: {format_time(timing.step_time)} per step, bubble {100 * timing.bubble_share:.1f} %, simulated",
        fontsize=13,
    )
    return png(canvas)


def _shown(num_places: int) -> list[int]:
    """The places that have a row: all, or so many of them, the first and the last included."""
    return sorted({round(x) for x in np.linspace(0, num_places - 1, min(num_places, _ROWS))})


def _boxes(timing: Timing, place: int, row: int) -> Iterator[_Box]:
    """All that a place does."""
    schedule = timing.schedule
    chunk = {stage: at for at, stage in enumerate(schedule.stages_at(place))}
    if timing.before[place]:
        yield _Box(row, 0.0, timing.before[place], "", 0, "")
    spans = zip(schedule.orders[place], timing.starts[place], timing.ends[place], strict=True)
    for action, start, end in spans:
        yield _Box(row, start, end, action.body, chunk[action.stage], str(action.microbatch))
    if timing.after[place]:
        start = timing.after_starts[place]
        yield _Box(row, start, start + timing.after[place], "", 0, "")


def _close_ups(timing: Timing) -> list[tuple[float, float]]:
    """The windows of the first and of the last actions; none if all their numbers fit the whole."""
    spans = [
        end - start
        for starts, ends in zip(timing.starts, timing.ends, strict=True)
        for start, end in zip(starts, ends, strict=True)
    ]
    short = float(np.quantile(spans, 0.1))
    if short >= timing.step_time * _DIGIT * 1.4:
        return []
    span = min(0.5 * timing.step_time, _CLOSE * short or timing.step_time / 10)
    return [(0.0, span), (timing.step_time - span, timing.step_time)]


def _draw(
    axes: Axes,
    timing: Timing,
    boxes: Sequence[_Box],
    places: Sequence[int],
    window: tuple[float, float],
    share: float,
) -> None:
    """The boxes between two times, on axes that take `share` of the picture's width."""
    scale, unit = time_unit(timing.step_time)
    seen = [box for box in boxes if box.end > window[0] and box.start < window[1]]
    axes.set_facecolor(_WAITS)
    groups: dict[tuple[str, int], list[_Box]] = defaultdict(list)
    for box in seen:
        groups[box.body, box.chunk].append(box)
    span = window[1] - window[0]
    edge = 0.6 if len(seen) <= _EDGED * share * len(places) else 0.0
    for (body, chunk), some in groups.items():
        corners = [_corners(box, scale) for box in some]
        axes.add_collection(
            PolyCollection(
                corners, facecolor=_colour(body, chunk), edgecolor="white", linewidth=edge, zorder=2
            )
        )
    for box in seen:
        low, high = max(box.start, window[0]), min(box.end, window[1])
        if box.text and high - low > span * _DIGIT * (len(box.text) + 0.4) / share:
            dark = sum(_colour(box.body, box.chunk)) < 1.5
            axes.text(
                (low + high) / 2 * scale, -box.row, box.text, ha="center", va="center_baseline",
                fontsize=8, color="white" if dark else "black", zorder=3, clip_on=True,
            )  # fmt: skip
    axes.set_yticks([-row for row in range(len(places))], [f"rank {place}" for place in places])
    axes.set_ylim(-len(places) + 0.45, 0.55)
    axes.set_xlim(window[0] * scale, window[1] * scale)
    axes.set_xlabel(f"time ({unit})", fontsize=9)


def _corners(box: _Box, scale: float) -> list[tuple[float, float]]:
    left, right = box.start * scale, box.end * scale
    low, high = -box.row - 0.46, -box.row + 0.46
    return [(left, low), (left, high), (right, high), (right, low)]


def _colour(body: str, chunk: int) -> tuple[float, float, float]:
    """The colour of a body, lighter for the later stages of a place."""
    red, green, blue = to_rgb(_COLOURS.get(body, _FIXED))
    white = 1.0 - (1.0 - _LIGHTER) ** chunk
    return red + (1 - red) * white, green + (1 - green) * white, blue + (1 - blue) * white


def _write_waits(axes: Axes, timing: Timing, places: Sequence[int]) -> None:
    """The share of the step that each place waits, at the right of its row."""
    right = axes.secondary_yaxis("right")
    waits = [f"{100 * timing.bubbles[place] / (timing.step_time or 1.0):.1f} %" for place in places]
    right.set_yticks([-row for row in range(len(places))], waits)
    right.tick_params(length=0, labelsize=8)
    right.set_ylabel("waits", fontsize=9)


def _legend(figure: Figure, timing: Timing) -> None:
    """The bodies by stage of a place, and what else is drawn."""
    pairs = sorted(
        {
            (
                _COLOURS[action.body],
                timing.schedule.stages_at(place).index(action.stage),
                action.body,
            )
            for place, order in enumerate(timing.schedule.orders)
            for action in order
        },
        key=lambda pair: (list(_WORDS).index(pair[2]), pair[1]),
    )
    several = any(chunk for _, chunk, _ in pairs)
    handles = [
        Patch(
            facecolor=_colour(body, chunk),
            label=_WORDS[body] + (f", stage {chunk + 1} of the rank" if several else ""),
        )
        for _, chunk, body in pairs
    ]
    if any(timing.before) or any(timing.after):
        handles.append(Patch(facecolor=_FIXED, label="before and after the microbatches"))
    handles.append(Patch(facecolor=_WAITS, edgecolor="#999999", label="waits"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 4),
        fontsize=9,
        frameon=False,
    )
