"""Joins the simulated step and the recorded ones by event id.

Timelines -> Comparison. The time for which ranks wait for each other is not a collective's own: a
collective's measured time is that of the rank that waited least, and the rest has its own row.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence

import pandas as pd

from cost_models.timeline import Event, Timeline
from planner.plans.plan import Plan
from planner.predict.predict import instruction_of
from planner.program.program import Program
from runtime.compare.comparison import Comparison, KindRow, Ran

__all__ = ["BETWEEN", "WAITING", "compare_programs", "covered", "grouped", "join_events"]

#: Rows of the table that are no op: waiting for other ranks, and the time between ops (reading the
#: loss, Python).
WAITING, BETWEEN = "waiting for ranks", "between ops"


def compare_programs(
    plan: Plan, hardware: str, program: Program, simulated: Timeline, ran: Ran
) -> Comparison:
    """The comparison of one simulated step and the measured ones."""
    events, waiting = join_events(simulated, ran.timelines, uneven=program.rank is not None)
    recorded = statistics.median(
        statistics.mean(t.step_time for t in step) for step in ran.timelines
    )
    between = max(0.0, recorded - covered(ran.timelines))
    extra = [
        KindRow(kind=WAITING, count=0, predicted_s=0.0, measured_s=waiting),
        KindRow(kind=BETWEEN, count=0, predicted_s=0.0, measured_s=between),
    ]
    talks = events[events["stream"] == "communication"]
    return Comparison(
        model=plan.ask.model,
        mesh=str(plan.mesh),
        num_ranks=plan.mesh.num_devices,
        hardware=hardware,
        predicted_step_time_s=simulated.step_time,
        measured_step_time_s=statistics.median(ran.step_times_s),
        predicted_peak_memory_bytes=simulated.peak_memory,
        measured_peak_memory_bytes=ran.peak_memory_bytes,
        recorded_step_time_s=recorded,
        step_times_s=ran.step_times_s,
        events=events,
        by_kind=(*grouped(events, "kind"), *(row for row in extra if row.measured_s > 0)),
        by_phase=grouped(events, "phase"),
        by_collective=grouped(talks, "kind"),
    )


def join_events(
    simulated: Timeline, recorded: Sequence[Sequence[Timeline]], *, uneven: bool = False
) -> tuple[pd.DataFrame, float]:
    """One row per instruction, predicted and measured, summed over the `count` microbatches that run
    it; and the seconds per step for which ranks waited for each other in collectives.

    `recorded` has the recorded steps, each the timelines of all ranks. The measured time is the
    median, over steps, of the mean over ranks; or of rank 0's time if its shards are larger than
    those of others (`uneven`), since these are predicted; for a collective, of the least over
    ranks. Every id is in both, or one of our stages has lost an event.
    """
    predicted = {
        event.id: event for event in simulated.events if instruction_of(event.id) == event.id
    }
    counts = Counter(event.id for event in simulated.events)
    seconds: dict[str, float] = defaultdict(float)  # recorded collectives include their copies
    for event in simulated.events:
        seconds[instruction_of(event.id)] += event.duration
    per_step = [_measured_step(step, uneven) for step in recorded]
    for found in per_step:
        assert found.keys() == predicted.keys(), sorted(found.keys() ^ predicted.keys())[:5]
    rows = []
    waiting = 0.0
    for name, event in predicted.items():
        measured = statistics.median(step[name][0] for step in per_step)
        waiting += statistics.median(step[name][1] for step in per_step)
        rows.append(
            {
                "id": name,
                "kind": event.kind,
                "phase": event.phase,
                "stream": event.stream,
                "path": event.path,
                "count": counts[name],
                "predicted_s": seconds[name],
                "measured_s": measured,
            }
        )
    return pd.DataFrame(rows), waiting


def _measured_step(timelines: Sequence[Timeline], uneven: bool) -> dict[str, tuple[float, float]]:
    """id -> (seconds, seconds of waiting) in one recorded step on all ranks, summed over
    microbatches: each is a meeting of its own."""
    durations: dict[tuple[str, int], list[float]] = defaultdict(list)
    talks: set[str] = set()
    for timeline in timelines:
        for event in timeline.events:
            durations[event.id, event.microbatch].append(event.duration)
            if event.stream == "communication":
                talks.add(event.id)
    out: dict[str, tuple[float, float]] = {}
    for (name, _), found in durations.items():
        assert len(found) == len(timelines), (
            f"{name} was recorded on {len(found)} of {len(timelines)} ranks"
        )
        seconds, waiting = out.get(name, (0.0, 0.0))
        if name in talks:
            least = min(found)
            out[name] = seconds + least, waiting + statistics.mean(found) - least
        else:
            out[name] = seconds + (found[0] if uneven else statistics.mean(found)), waiting
    return out


def covered(recorded: Sequence[Sequence[Timeline]]) -> float:
    """Seconds per step in which some event runs: the median over steps of the mean over ranks."""
    return statistics.median(
        statistics.mean(_union(timeline.events) for timeline in step) for step in recorded
    )


def _union(events: Sequence[Event]) -> float:
    total, until = 0.0, 0.0
    for event in sorted(events, key=lambda e: e.start):
        total += max(0.0, event.end - max(event.start, until))
        until = max(until, event.end)
    return total


def grouped(events: pd.DataFrame, key: str) -> tuple[KindRow, ...]:
    """Sums of seconds by the values of column `key`, largest measured first."""
    rows = []
    for name, part in events.groupby(key):
        predicted, measured = float(part["predicted_s"].sum()), float(part["measured_s"].sum())
        rows.append(
            KindRow(
                kind=str(name),
                count=int(part["count"].sum()),
                predicted_s=predicted,
                measured_s=measured,
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.measured_s))
