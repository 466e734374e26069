"""What the lanes of a task say about the order of its actions before any order is chosen."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from planner.schedules.find.task import Floats, Lanes, Task

__all__ = [
    "Pair",
    "Reach",
    "Step",
    "busy_seconds",
    "earliest",
    "lags",
    "least_after",
    "num_unordered",
    "reach",
    "unordered",
]

#: A lane and a microbatch: an action.
Step = tuple[int, int]
#: Two actions of a place.
Pair = tuple[Step, Step]
#: Whether a path of lanes goes from one lane to another.
Reach = NDArray[np.bool_]


def reach(lanes: Lanes) -> Reach:
    """From which lane to which other one a path goes."""
    n = len(lanes.place)
    out = np.zeros((n, n), np.bool_)
    for lane in range(n):
        out[lane, lanes.readers[lanes.first[lane] : lanes.first[lane + 1]]] = True
    for k in range(n):
        out |= out[:, k : k + 1] & out[k : k + 1, :]
    return out


def unordered(lanes: Lanes, reaches: Reach, microbatches: int) -> list[Pair]:
    """The pairs of actions of a place that no path, nor the order of a lane, orders."""
    out = []
    for place in range(len(lanes.at) - 1):
        own = lanes.lanes[lanes.at[place] : lanes.at[place + 1]].tolist()
        for a, b in itertools.combinations(own, 2):
            for i, j in itertools.product(range(microbatches), repeat=2):
                if not (reaches[a, b] and i <= j) and not (reaches[b, a] and j <= i):
                    out.append(((a, i), (b, j)))
    return out


def num_unordered(lanes: Lanes, reaches: Reach, microbatches: int) -> int:
    """How many pairs `unordered` lists."""
    m, out = microbatches, 0
    for place in range(len(lanes.at) - 1):
        own = lanes.lanes[lanes.at[place] : lanes.at[place + 1]].tolist()
        for a, b in itertools.combinations(own, 2):
            out += m * (m - 1) // 2 if reaches[a, b] or reaches[b, a] else m * m
    return out


def busy_seconds(lanes: Lanes, overlapped: bool) -> Floats:
    """Seconds that each lane's place is busy: its own, and if messages block it those too."""
    busy: Floats = lanes.seconds.copy()
    for lane in range(len(busy)):
        sent: dict[int, float] = {}
        for e in range(lanes.first[lane], lanes.first[lane + 1]):
            if lanes.channel[e] >= 0:
                channel = int(lanes.channel[e])
                sent[channel] = sent.get(channel, 0.0) + float(lanes.delay[e])
        if not overlapped:
            busy[lane] += max(sent.values(), default=0.0)
    return busy


def lags(lanes: Lanes, busy: Floats) -> list[tuple[int, int, float]]:
    """(lane, lane that waits for it, seconds from the start of one to that of the other)."""
    return [
        (
            lane,
            int(lanes.readers[e]),
            float(busy[lane] if lanes.channel[e] < 0 else lanes.seconds[lane] + lanes.delay[e]),
        )
        for lane in range(len(lanes.place))
        for e in range(lanes.first[lane], lanes.first[lane + 1])
    ]


def earliest(task: Task, lanes: Lanes, reaches: Reach, busy: Floats) -> Floats:
    """The earliest start of every action, by (lane, microbatch)."""
    before = np.array(task.costs.before or (0.0,) * task.num_places)
    head: Floats = np.tile(before[lanes.place][:, None], task.microbatches)
    edges = sorted(lags(lanes, busy), key=lambda edge: int(reaches[:, edge[0]].sum()))
    for k in range(task.microbatches):
        if k:
            head[:, k] = np.maximum(head[:, k], head[:, k - 1] + busy)
        for lane, reader, lag in edges:
            head[reader, k] = max(head[reader, k], head[lane, k] + lag)
    return head


def least_after(task: Task, lanes: Lanes, reaches: Reach, busy: Floats) -> Floats:
    """From the start of every action to the end of the step, at least."""
    after = np.array(task.costs.after or (0.0,) * task.num_places)
    if task.costs.together:
        after = np.full_like(after, after.max())
    tail: Floats = np.tile((busy + after[lanes.place])[:, None], task.microbatches)
    edges = sorted(lags(lanes, busy), key=lambda edge: int(reaches[edge[1]].sum()))
    for k in reversed(range(task.microbatches)):
        if k + 1 < task.microbatches:
            tail[:, k] = np.maximum(tail[:, k], busy + tail[:, k + 1])
        for lane, reader, lag in edges:
            tail[lane, k] = max(tail[lane, k], lag + tail[reader, k])
    return tail
