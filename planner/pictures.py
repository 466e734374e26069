"""Pictures of a step: what ran when on each stream, and what memory held. PNG bytes, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cost_models.timeline import Timeline
from cost_models.units import format_bytes, format_time

__all__ = ["draw_memory", "draw_timeline"]

#: Colours that stay apart for colour-blind readers. Source: Okabe and Ito, "Color Universal Design", 2008; and greys.
_KINDS = {
    "gemm": "#0072b2", "attention": "#56b4e9", "lstm": "#004c77", "conv": "#3b6fb5", "embedding": "#9ad0f5",
    "elementwise": "#f0e442", "norm": "#c9b400", "softmax": "#e8d98a", "reduction": "#a89c3c", "copy": "#bbbbbb", "view": "#dddddd",
    "optimizer": "#cc79a7", "all_reduce": "#d55e00", "all_gather": "#e69f00", "reduce_scatter": "#a33c00", "all_to_all": "#009e73",
    "slice": "#dddddd",
}  # fmt: skip
_CATEGORIES = {
    "parameters": "#0072b2", "optimizer": "#56b4e9", "gradients": "#009e73", "activations": "#e69f00", "gathered": "#d55e00",
    "temporaries": "#f0e442", "inputs": "#999999",
}  # fmt: skip
_PHASES = {"forward": "#ffffff", "backward": "#f0f0f0", "update": "#e2e2e2"}


def draw_timeline(timeline: Timeline, title: str) -> bytes:
    """A PNG of device 0's step: a row a stream, coloured by kind, phases shaded."""
    return b""


def draw_memory(timeline: Timeline, held: Mapping[str, int], capacity: int, title: str) -> bytes:
    """A PNG of memory: by category at the peak, and over the step, against the capacity."""
    return b""
