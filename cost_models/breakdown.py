"""How the time of one device's step divides: computing, communicating without computing, or
neither."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cost_models.timeline import Timeline

__all__ = ["Breakdown", "breakdown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Seconds of one device's step; the three sum to the step time exactly."""

    compute: float
    exposed_communication: float
    idle: float

    @property
    def total(self) -> float:
        return self.compute + self.exposed_communication + self.idle


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    length, reach = 0.0, float("-inf")
    for start, end in sorted(spans):
        if end > reach:
            length += end - max(start, reach)
            reach = end
    return length


def breakdown(timeline: Timeline, device: int) -> Breakdown:
    """The step time of `device` in three parts.

    compute = |C|, exposed communication = |C or M| - |C|, idle = step - |C or M|, with C and M the
    times at which the compute and the communication stream run. The host's own time counts as idle:
    the device waits for it.
    """
    spans: dict[str, list[tuple[float, float]]] = {"compute": [], "communication": [], "host": []}
    for event in timeline.on(device):
        spans[event.stream].append((event.start, event.end))
    compute = _union(spans["compute"])
    busy = _union(spans["compute"] + spans["communication"])
    return Breakdown(
        compute=compute, exposed_communication=busy - compute, idle=timeline.step_time - busy
    )
