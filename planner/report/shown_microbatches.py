"""Which microbatches of a step are shown: all, or of many the first, one of the middle and the last.

Timeline -> a shorter one, whose parts follow each other without a gap, and the words that say so.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cost_models.timeline import Event, MemorySample, Timeline

__all__ = ["Shown", "begins_of", "shown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What is shown of a step. `parts` are the (begin, end) that are kept, in seconds of the whole
    step; `words` say which microbatches these are, and are empty if they are all."""

    timeline: Timeline
    parts: tuple[tuple[float, float], ...]
    words: str = ""

    def cut(
        self, times: Sequence[float], held: Mapping[str, Sequence[int]]
    ) -> tuple[list[float], dict[str, list[int]]]:
        """Memory over time (`memory_over_time`), of the parts shown."""
        if not self.words:
            return list(times), {name: list(row) for name, row in held.items()}
        places: list[tuple[float, int]] = []
        passed = 0.0
        for low, high in self.parts:
            first = max(0, bisect_right(times, low) - 1)
            found = range(first, bisect_right(times, high))
            places += [(passed + max(times[i], low) - low, i) for i in found]
            passed += high - low
        return [time for time, _ in places], {
            n: [row[i] for _, i in places] for n, row in held.items()
        }


def begins_of(events: Sequence[Event]) -> list[float]:
    """When the forward pass of every microbatch begins, in order. What runs ahead of the first one
    belongs to it."""
    runs: list[tuple[int, float]] = []
    for event in events:
        computes = event.stream == "compute" and event.phase != "update"
        if computes and (not runs or runs[-1][0] != event.microbatch):
            runs.append((event.microbatch, event.start))
    again = [i for i in range(1, len(runs)) if runs[i][0] < runs[i - 1][0]]
    return [start for _, start in runs[again[-1] if again else 0 :]]


def shown(timeline: Timeline, most: int) -> Shown:
    """All of a step of at most so many microbatches; of more, the first, the middle one and the
    last."""
    begins = begins_of(timeline.on(0))
    if len(begins) <= max(most, 3):
        return Shown(timeline=timeline, parts=((0.0, timeline.step_time),))
    middle = len(begins) // 2
    parts = (
        (0.0, begins[1]),
        (begins[middle], begins[middle + 1]),
        (begins[-1], timeline.step_time),
    )
    return Shown(
        timeline=_joined(timeline, parts),
        parts=parts,
        words=f"microbatches 1, {middle + 1} and {len(begins)} of {len(begins)}",
    )


def _joined(timeline: Timeline, parts: Sequence[tuple[float, float]]) -> Timeline:
    """What runs in some parts of a step, one after another."""
    events: list[Event] = []
    memory: list[MemorySample] = []
    passed = 0.0
    for low, high in parts:
        shift = passed - low
        for event in timeline.events:
            if event.start < high and event.end > low:
                start, end = max(event.start, low), min(event.end, high)
                events.append(replace(event, start=start + shift, end=end + shift))
        memory += [
            replace(sample, time=sample.time + shift)
            for sample in timeline.memory
            if low <= sample.time < high
        ]
        passed += high - low
    return replace(timeline, events=tuple(events), memory=tuple(memory), step_time=passed)
