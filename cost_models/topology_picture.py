"""A picture of a cluster: at most two nodes in full, with devices, switches, NICs, the fabric,
and the links' bandwidths."""

from __future__ import annotations

import io
import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from cost_models.atomic_write import write_atomically
from cost_models.machine import Cluster, Level
from cost_models.units import format_bytes, format_rate

__all__ = ["draw_cluster"]

#: Colours that stay apart for colour-blind readers. Source: Okabe and Ito, "Color Universal
#: Design", 2008.
_COLOURS = {
    "device": "#56b4e9",
    "switch": "#009e73",
    "host": "#bbbbbb",
    "nic": "#e69f00",
    "fabric": "#cc79a7",
    "nvlink": "#009e73",
    "pcie": "#888888",
    "infiniband": "#cc79a7",
    "roce": "#cc79a7",
    "ethernet": "#cc79a7",
    "shared_memory": "#888888",
}
_DRAWN_NODES = 2
_DRAWN_DEVICES = 8
_DRAWN_NICS = 16
_NODE_WIDTH = 10.0
_GAP = 1.2
Point = tuple[float, float]


def draw_cluster(cluster: Cluster, path: str | Path) -> None:
    """Writes a PNG of `cluster` to `path`: the first two nodes in full, and in words how many more
    there are.

    Raises `BadValue` if the file cannot be written.
    """
    drawn = min(cluster.num_nodes, _DRAWN_NODES)
    width = drawn * _NODE_WIDTH + (drawn - 1) * _GAP
    tall = cluster.num_nodes > 1
    figure = Figure(figsize=(max(8.0, width * 0.75), 6.2 if tall else 4.6), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.9))
    axes.set_axis_off()
    axes.set_xlim(-0.4, width + 0.4)
    axes.set_ylim(-0.4, 8.6 if tall else _single_height(cluster) + 0.3)
    figure.suptitle(_title(cluster), fontsize=12, y=0.975)
    for node in range(drawn):
        _draw_node(axes, cluster, node, node * (_NODE_WIDTH + _GAP))
    if tall:
        _draw_fabric(axes, cluster, width, drawn)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomically(path, picture.getvalue())


def _single_height(cluster: Cluster) -> float:
    """The height of the frame of a single node: a mesh takes two rows of devices, a switch or host
    takes one."""
    return 5.4 if cluster.intra.fabric == "mesh" else 4.2


def _title(cluster: Cluster) -> str:
    count = f"{cluster.num_devices} x {cluster.device.name} ({format_bytes(cluster.device.memory)} each)"
    nodes = f"{cluster.num_nodes} node{'s' if cluster.num_nodes > 1 else ''}"
    return f"{cluster.name}: {count}, {nodes}"


def _box(axes: Axes, centre: Point, size: Point, text: str, kind: str, fontsize: float = 9) -> None:
    x, y = centre[0] - size[0] / 2, centre[1] - size[1] / 2
    patch = FancyBboxPatch(
        (x, y),
        *size,
        boxstyle="round,pad=0,rounding_size=0.12",
        facecolor=_COLOURS[kind],
        edgecolor="#333333",
        zorder=3,
    )
    axes.add_patch(patch)
    axes.text(*centre, text, ha="center", va="center", fontsize=fontsize, zorder=4)


def _line(axes: Axes, a: Point, b: Point, kind: str, width: float = 1.4) -> None:
    axes.plot(
        (a[0], b[0]),
        (a[1], b[1]),
        color=_COLOURS[kind],
        linewidth=width,
        zorder=1,
        solid_capstyle="round",
    )


def _draw_node(axes: Axes, cluster: Cluster, node: int, left: float) -> None:
    """Draws one node in a frame: its devices in a row over the switch or host, or as a mesh; its
    NICs above them."""
    ranks = cluster.ranks_of(node)
    multi = cluster.num_nodes > 1
    frame = FancyBboxPatch(
        (left, 0),
        _NODE_WIDTH,
        6.4 if multi else _single_height(cluster),
        boxstyle="round,pad=0,rounding_size=0.2",
        facecolor="#f7f7f7",
        edgecolor="#999999",
        zorder=0,
    )
    axes.add_patch(frame)
    more = f", {len(ranks) - _DRAWN_DEVICES} more not drawn" if len(ranks) > _DRAWN_DEVICES else ""
    axes.text(
        left + 0.2,
        0.12,
        f"node {node}: {len(ranks)} devices{more}",
        fontsize=9,
        color="#555555",
        va="bottom",
    )
    shown = ranks[:_DRAWN_DEVICES]
    mesh = cluster.intra.fabric == "mesh"
    places = _mesh_places(left, len(shown)) if mesh else _row_places(left, len(shown), 3.4)
    (_draw_mesh if mesh else _draw_hub)(axes, cluster, node, left, places)
    for rank, place in zip(shown, places, strict=True):
        _box(axes, place, (0.95, 0.62), f"{rank}", "device", 10)
    if multi:
        _draw_nics(axes, cluster, left, places)


def _row_places(left: float, count: int, y: float) -> list[Point]:
    return [(left + _NODE_WIDTH * (i + 0.5) / count, y) for i in range(count)]


def _mesh_places(left: float, count: int) -> list[Point]:
    """Two squares side by side, as the hybrid cube mesh is usually drawn: devices 0-3 and 4-7;
    otherwise a circle."""
    if count == _DRAWN_DEVICES:
        xs, ys = (1.6, 4.0), (4.5, 2.1)
        square = [(xs[0], ys[0]), (xs[1], ys[0]), (xs[1], ys[1]), (xs[0], ys[1])]
        other = [(_NODE_WIDTH - x, y) for x, y in square]
        return [(left + x, y) for x, y in (*square, *other)]
    turn = [2 * math.pi * i / count + math.pi / 2 for i in range(count)]
    return [(left + _NODE_WIDTH / 2 + 2.6 * math.cos(a), 3.3 + 1.3 * math.sin(a)) for a in turn]


def _draw_hub(axes: Axes, cluster: Cluster, node: int, left: float, places: list[Point]) -> None:
    """Draws a bar for the switches or the host, with a link down from every device."""
    intra = cluster.intra
    for x, y in places:
        _line(axes, (x, y), (x, 1.5), intra.link, 3.0 if intra.fabric == "switch" else 1.8)
    name = "switch" if intra.fabric == "switch" else "host"
    text = f"{intra.link} {name}: {format_rate(intra.bandwidth, 'B/s')} per device and direction"
    if intra.shared_bandwidth is not None:
        text += f", {format_rate(intra.shared_bandwidth, 'B/s')} in all"
    _box(axes, (left + _NODE_WIDTH / 2, 1.3), (_NODE_WIDTH - 0.24, 0.7), text, name)


def _draw_mesh(axes: Axes, cluster: Cluster, node: int, left: float, places: list[Point]) -> None:
    """Draws direct links, their width by their bricks, with the bandwidths of a brick and the host
    in words."""
    intra = cluster.intra
    for a, b, bricks in intra.links:
        if a < len(places) and b < len(places):
            _curve(axes, places[a], places[b], intra.link, 2.2 * bricks)
    words = (
        f"{intra.link}: thin lines 1, thick lines 2 bricks of "
        f"{format_rate(intra.bandwidth, 'B/s')} per direction"
    )
    host = f"other pairs through the host, {format_rate(intra.host_bandwidth or 0.0, 'B/s')}"
    axes.text(left + _NODE_WIDTH / 2, 0.75, f"{words}; {host}", ha="center", fontsize=9)


def _curve(axes: Axes, a: Point, b: Point, kind: str, width: float) -> None:
    """Draws a link between two devices, bent if it would run through the devices between them."""
    length = math.dist(a, b)
    bend = 0.0 if length < 3.7 else (0.32 if a[1] > 3.3 and b[1] > 3.3 else -0.32)
    steps = [i / 24 for i in range(25)]
    xs = [a[0] + (b[0] - a[0]) * t for t in steps]
    ys = [
        a[1] + (b[1] - a[1]) * t + bend * 4 * t * (1 - t) * math.sqrt(length) / 1.6 for t in steps
    ]
    axes.plot(xs, ys, color=_COLOURS[kind], linewidth=width, zorder=1, alpha=0.85)


def _draw_nics(axes: Axes, cluster: Cluster, left: float, places: list[Point]) -> None:
    """Draws the node's NICs over its devices, each linked to the devices nearest to it and up to
    the fabric."""
    inter = cluster.inter
    assert inter is not None
    shown = min(inter.nics_per_node, _DRAWN_NICS)
    nics = _row_places(left, shown, 5.75)
    for nic, place in enumerate(nics):
        _line(axes, place, (place[0], 7.6), inter.link, 2.0)
        _box(
            axes,
            place,
            (min(1.0, 0.85 * _NODE_WIDTH / shown), 0.5),
            f"NIC {nic}",
            "nic",
            8,
        )
        for local, device in enumerate(places):
            if nic in cluster.nic_of(local):
                _line(axes, device, place, "pcie", 0.8)


def _draw_fabric(axes: Axes, cluster: Cluster, width: float, drawn: int) -> None:
    inter = cluster.inter
    assert inter is not None
    more = cluster.num_nodes - drawn
    text = f"{inter.link} fabric: {inter.nics_per_node} NIC{'s' if inter.nics_per_node > 1 else ''} per node"
    text += f" of {format_rate(inter.bandwidth, 'B/s')} per direction"
    if more:
        text += f"; {more} more node{'s' if more > 1 else ''} like these"
    levels = "; ".join(map(_level_words, inter.levels))
    box = (width / 2, 7.8), (width - 0.4, 0.7)
    _box(axes, *box, f"{text}\n{levels}" if levels else text, "fabric", 9 if levels else 10)


def _level_words(level: Level) -> str:
    narrow = level.oversubscription > 1
    out = f", oversubscribed {level.oversubscription:g}:1" if narrow else ""
    return f"{level.name}s of {level.nodes} nodes{out}"
