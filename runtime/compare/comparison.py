"""The records of a comparison: predicted and measured, per device and step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from cost_models.timeline import Timeline

__all__ = ["Comparison", "KindRow", "Ran"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRow:
    """Seconds per step in one kind of op, in one phase or in one collective. `error` is predicted /
    measured - 1, None if nothing was measured."""

    kind: str
    count: int
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float | None:
        return self.predicted_s / self.measured_s - 1 if self.measured_s > 0 else None

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"error": self.error}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Predicted and measured, per device and step. `events` has a row per instruction (id, kind,
    phase, ...); `measured_step_time_s` is the median of unrecorded steps, whose times are in
    `step_times_s`. `by_body` has the bodies of pipeline stages, each on the devices of its stage."""

    model: str
    mesh: str
    num_ranks: int
    predicted_step_time_s: float
    measured_step_time_s: float
    predicted_peak_memory_bytes: int
    measured_peak_memory_bytes: int
    recorded_step_time_s: float
    step_times_s: tuple[float, ...]
    by_kind: tuple[KindRow, ...]
    by_phase: tuple[KindRow, ...]
    by_collective: tuple[KindRow, ...]
    events: pd.DataFrame
    hardware: str
    by_body: tuple[KindRow, ...] = ()

    @property
    def error(self) -> float:
        """The signed error of the step time: predicted / measured - 1."""
        return self.predicted_step_time_s / self.measured_step_time_s - 1

    def table(self) -> pd.DataFrame:
        """Predicted and measured milliseconds by kind, phase and collective, largest first."""
        rows = [
            {
                "group": group,
                "name": row.kind,
                "ops": row.count,
                "predicted_ms": row.predicted_s * 1e3,
                "measured_ms": row.measured_s * 1e3,
                "error": row.error,
            }
            for group, part in (
                ("kind", self.by_kind),
                ("phase", self.by_phase),
                ("collective", self.by_collective),
                ("body", self.by_body),
            )
            for row in part
        ]
        return pd.DataFrame(rows)

    def as_json(self) -> dict[str, Any]:
        """The keys of `plan compare --json`."""
        return {
            "model": self.model,
            "mesh": self.mesh,
            "num_ranks": self.num_ranks,
            "hardware": self.hardware,
            "predicted_step_time_s": self.predicted_step_time_s,
            "measured_step_time_s": self.measured_step_time_s,
            "error": self.error,
            "predicted_peak_memory_bytes": self.predicted_peak_memory_bytes,
            "measured_peak_memory_bytes": self.measured_peak_memory_bytes,
            "recorded_step_time_s": self.recorded_step_time_s,
            "step_times_s": list(self.step_times_s),
            "by_kind": [row.as_json() for row in self.by_kind],
            "by_phase": [row.as_json() for row in self.by_phase],
            "by_collective": [row.as_json() for row in self.by_collective],
            **({"by_body": [row.as_json() for row in self.by_body]} if self.by_body else {}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The ranks' measurements: unrecorded step times, and the recorded steps of every rank."""

    step_times_s: tuple[float, ...]
    timelines: tuple[tuple[Timeline, ...], ...]  # by recorded step, then by rank
    peak_memory_bytes: int
