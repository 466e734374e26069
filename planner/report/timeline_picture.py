"""The picture of a step: what ran when on each stream. PNG bytes, drawn without a display."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cost_models.timeline import Event, Timeline
from cost_models.units import format_time
from planner.program.program import runs_again
from planner.report.shown_microbatches import begins_of

__all__ = ["OTHER", "draw_timeline", "png", "time_unit"]

#: Start and end, in seconds.
Window = tuple[float, float]
#: A phase, with its start and end in seconds.
Span = tuple[str, float, float]

#: Compute in blues and yellows, communication in reds and greens: told apart by colour-blind
#: readers too. Source: Okabe and Ito, "Color Universal Design", 2008, and lighter and darker steps
#: of its colours.
_KINDS = {
    "gemm": "#0072b2",
    "attention": "#56b4e9",
    "lstm": "#004c77",
    "conv": "#2f8fd0",
    "embedding": "#a6d8f5",
    "elementwise": "#f0e442",
    "fused": "#5c5500",
    "norm": "#c7b800",
    "softmax": "#f7f2a5",
    "reduction": "#8f8500",
    "copy": "#bbbbbb",
    "view": "#dddddd",
    "slice": "#dddddd",
    "optimizer": "#cc79a7",
    "all_reduce": "#d55e00",
    "all_gather": "#e69f00",
    "reduce_scatter": "#8c3d00",
    "all_to_all": "#009e73",
}
_PHASES = {"forward": "#ffffff", "backward": "#ececec", "update": "#d9d9d9"}
#: The colour of kinds that have none of their own.
OTHER = "#777777"
#: The hatch of what runs again in backward.
_AGAIN = "////"
_DARK = ("#0072b2", "#004c77", "#2f8fd0", "#d55e00", "#8c3d00", "#8f8500", "#5c5500", OTHER)
#: A bar is named if it has this share of the picture's width for every letter of the name.
_LETTER = 0.0072
#: With more ops than this, two close-ups of about `_CLOSE` ops each, in forward and in backward,
#: stand below the whole step.
_MANY, _CLOSE = 250, 36


def draw_timeline(timeline: Timeline, title: str, step_time: float | None = None) -> bytes:
    """A PNG of device 0's step: a row for each stream and communicator, coloured by kind, phases
    shaded; with close-ups if there are many ops. `step_time` is the whole step's, if the timeline
    is only of a part."""
    events = [event for event in timeline.on(0) if event.duration > 0]
    lanes = _lanes(events)
    spans = _phase_spans(events, timeline.step_time)
    windows = _close_ups(events, spans) if len(events) > _MANY else []
    height = 0.9 + 0.7 * len(lanes)
    figure = Figure(
        figsize=(12, 1.5 + height * (2 if windows else 1)), dpi=110, layout="constrained"
    )
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2 if windows else 1, max(len(windows), 1))
    whole = (0.0, timeline.step_time or 1.0)
    top = figure.add_subplot(grid[0, :])
    _draw_window(top, events, lanes, spans, whole, 1.0)
    for column, window in enumerate(windows):
        below = figure.add_subplot(grid[1, column])
        _draw_window(below, events, lanes, spans, window, 1 / len(windows))
        scale, _ = time_unit(timeline.step_time)
        top.axvspan(
            window[0] * scale,
            window[1] * scale,
            fill=False,
            edgecolor="#cc0000",
            linewidth=1.2,
            zorder=4,
        )
        below.spines[:].set_color("#cc0000")
    _legend(figure, events, timeline.step_time)
    seconds = timeline.step_time if step_time is None else step_time
    figure.suptitle(f"{title}: {format_time(seconds)} per step, simulated", fontsize=11)
    return png(canvas)


def _lanes(events: Sequence[Event]) -> list[str]:
    """The rows of a picture: compute, every communicator, and the host if it does work of its
    own."""
    channels = dict.fromkeys(event.lane for event in events if event.stream == "communication")
    host = ["host"] if any(event.stream == "host" for event in events) else []
    return ["compute", *(channels or ["communication"]), *host]


def _short(lane: str) -> str:
    """`communication tp` -> `comm. tp`."""
    stream, _, channel = lane.partition(" ")
    return f"{stream[:4]}. {channel}".rstrip()


def time_unit(seconds: float) -> tuple[float, str]:
    """Units in a second, and the unit, for a picture of so many seconds."""
    return (1e6, "us") if seconds < 1e-3 else (1e3, "ms") if seconds < 1 else (1.0, "s")


def _phase_spans(events: Sequence[Event], step: float) -> list[Span]:
    """The span of each phase of each microbatch, from its first op on the compute stream to the
    next phase's. Sums over microbatches are of the update, but run in backward."""
    begins = begins_of(events)  # not of what runs ahead of the first microbatch
    computes = [e for e in events if e.stream == "compute" and e.start >= min(begins, default=0.0)]
    several = len({event.microbatch for event in computes}) > 1
    last = max((e.start for e in computes if e.phase == "backward"), default=0.0)
    starts: dict[tuple[int, str], float] = {}
    for event in computes:
        if not several or event.phase != "update" or event.start > last:
            starts.setdefault((event.microbatch, event.phase), event.start)
    edges = [0.0, *list(starts.values())[1:], step]
    return [(phase, edges[i], edges[i + 1]) for i, (_, phase) in enumerate(starts)]


def _close_ups(events: Sequence[Event], spans: Sequence[Span]) -> list[Window]:
    """The windows of some ops in the middle of forward and of backward, of the middle
    microbatch."""
    out = []
    for phase in ("forward", "backward"):
        own = [(low, high) for name, low, high in spans if name == phase]
        some = [e for e in events if e.stream == "compute" and e.phase == phase]
        if some:
            low, high = own[len(own) // 2]
            middle = next(
                (i for i, e in enumerate(some) if e.end >= (low + high) / 2), len(some) - 1
            )
            first = max(0, min(middle - _CLOSE // 2, len(some) - _CLOSE))
            out.append((some[first].start, some[min(first + _CLOSE, len(some)) - 1].end))
    return out


def _draw_window(
    axes: Axes,
    events: Sequence[Event],
    lanes: Sequence[str],
    spans: Sequence[Span],
    window: Window,
    share: float,
) -> None:
    """The lanes between two times, on axes that take `share` of the picture's width."""
    scale, unit = time_unit(window[1])
    width = window[1] - window[0]
    for phase, low, high in spans:
        low, high = max(low, window[0]), min(high, window[1])
        if low < high:
            _draw_phase(axes, phase, low, high, window, scale, share)
    for row, lane in enumerate(lanes):
        shown = [e for e in events if e.lane == lane and e.end > window[0] and e.start < window[1]]
        _draw_bars(axes, shown, -row, scale, width)
        _name_bars(axes, shown, -row, scale, window, width * _LETTER / share)
    axes.set_yticks(
        [-row for row in range(len(lanes))], lanes if share == 1 else list(map(_short, lanes))
    )
    axes.set_ylim(-len(lanes) + 0.5, 0.72)
    axes.set_xlim(window[0] * scale, window[1] * scale)
    axes.set_xlabel(f"time ({unit})", fontsize=9)


def _draw_phase(
    axes: Axes, phase: str, low: float, high: float, window: Window, scale: float, share: float
) -> None:
    """A shaded band, with the phase's name if it fits; at the right end it may extend to the
    left."""
    axes.axvspan(low * scale, high * scale, facecolor=_PHASES.get(phase, "#ffffff"), zorder=0)
    wide = high - low > (window[1] - window[0]) * 0.008 * len(phase) / share
    if wide or high == window[1]:
        at, side = (
            ((low + high) / 2, "center")
            if wide
            else (high - (window[1] - window[0]) * 0.003, "right")
        )
        axes.text(at * scale, 0.58, phase, ha=side, va="center", fontsize=9, color="#555555")


def _draw_bars(axes: Axes, events: Sequence[Event], row: int, scale: float, width: float) -> None:
    """All bars of a stream, one collection per kind; the narrowest remain visible, wide ones are
    set apart by a white edge, and hatched if they run again."""
    groups: dict[tuple[str, bool, bool], list[Event]] = defaultdict(list)
    for event in events:
        wide = event.duration > 0.006 * width
        groups[event.kind, wide, runs_again(event.id)].append(event)
    for (kind, edged, again), some in groups.items():
        left = np.array([e.start for e in some]) * scale
        right = np.maximum(np.array([e.end for e in some]) * scale, left + width * scale * 3e-4)
        low, high = np.full_like(left, row - 0.36), np.full_like(left, row + 0.36)
        corners = np.stack(
            [
                np.stack(pair, 1)
                for pair in ((left, low), (left, high), (right, high), (right, low))
            ],
            1,
        )
        edge, width_of = ("white", 0.7) if edged else ("none", 0.0)
        bars = PolyCollection(
            list(corners),
            facecolor=_KINDS.get(kind, OTHER),
            edgecolor=edge,
            linewidth=width_of,
            hatch=_AGAIN if again and edged else None,
            zorder=2,
        )
        axes.add_collection(bars)


def _name_bars(
    axes: Axes, events: Sequence[Event], row: int, scale: float, window: Window, letter: float
) -> None:
    """The module of every bar that is wide enough for its whole name or the name's last part."""
    for event in events:
        low, high = max(event.start, window[0]), min(event.end, window[1])
        names = (event.path, event.path.rpartition(".")[2], event.kind.replace("_", "-"))
        name = next((n for n in names if n and high - low > letter * (len(n) + 1)), None)
        if name is not None:
            colour = "white" if _KINDS.get(event.kind, OTHER) in _DARK else "black"
            axes.text(
                (low + high) / 2 * scale,
                row,
                name,
                ha="center",
                va="center",
                fontsize=8,
                color=colour,
                zorder=3,
            )


def _legend(figure: Figure, events: Sequence[Event], step: float) -> None:
    """The kinds with the share of the step that each takes, the longest first."""
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        spent[event.kind] += event.duration
    handles = [
        Patch(
            color=_KINDS.get(kind, OTHER),
            label=f"{kind.replace('_', '-')} {100 * seconds / step:.1f} %",
        )
        for kind, seconds in sorted(spent.items(), key=lambda item: -item[1])
    ]
    again = sum(event.duration for event in events if runs_again(event.id))
    if again:
        label = f"of these, recompute {100 * again / step:.1f} %"
        handles.append(Patch(facecolor=OTHER, edgecolor="white", hatch=_AGAIN, label=label))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 7),
        fontsize=8,
        frameon=False,
    )


def png(canvas: FigureCanvasAgg) -> bytes:
    """The bytes of a drawn figure."""
    out = io.BytesIO()
    canvas.print_png(out)  # type: ignore[no-untyped-call]
    return out.getvalue()
