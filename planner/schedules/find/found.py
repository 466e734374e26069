"""The best schedule for given times and memory that is found, and a bound on all.

Candidates are the schedules that have names, list scheduling by many policies and small changes of
the best; then, for a small task, the integer program. The shortest by `timing.timed` wins, so it is
never longer than a named schedule that fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from cost_models.errors import DoesNotFit
from cost_models.units import format_bytes
from planner.program.actions import Action
from planner.schedules.check_schedule import schedule_faults
from planner.schedules.find.exact_order import num_pairs, solve_exactly
from planner.schedules.find.least_step import least_step
from planner.schedules.find.policies import by_policies, improved
from planner.schedules.find.task import Task
from planner.schedules.in_flight import peaks
from planner.schedules.registry import SCHEDULES, scheduled
from planner.schedules.schedule import BACKWARD, INPUT, WEIGHT, Schedule
from planner.schedules.timing import Timing, timed

__all__ = ["Found", "find"]

#: A step within this of the bound is proved best.
_TOLERANCE = 1e-9

#: As many of the best schedules are changed, each with the same share of the effort.
_STARTS = 4

#: Integer programs of more pairs are not tried: they prove nothing in a minute.
_MOST_PAIRS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The best schedule that was found, its times, which candidate it was, and what every schedule
    of the task takes at least."""

    timing: Timing
    candidate: str
    bound: float

    @property
    def gap(self) -> float:
        """Share of the step that is not proved to be needed."""
        return max(0.0, 1.0 - self.bound / (self.timing.step_time or 1.0))


def find(task: Task, *, actions: int = 200_000, seconds: float = 10.0) -> Found:
    """The best schedule of a task. actions: how many to schedule while the best is changed.
    seconds: the time limit of the integer program, 0 for none.

    Raises DoesNotFit with the place and its bytes if it cannot hold even one microbatch.
    """
    _must_fit(task)
    bound = least_step(task)
    candidates = sorted(_timings(task), key=lambda pair: pair[1].step_time)
    best = candidates[0]
    if not _proved(best[1], bound):
        for in_two in _ways(task):
            for _, timing in candidates[:_STARTS]:
                near = improved(task, timing.schedule, in_two, actions // _STARTS)
                best = _better(task, best, [("changed", near)])
    if not _proved(best[1], bound) and seconds > 0:
        best, bound = _exact(task, best, bound, seconds)
    name, timing = best
    schedule = replace(timing.schedule, name="found")
    return Found(timing=replace(timing, schedule=schedule), candidate=name, bound=bound)


def _ways(task: Task) -> tuple[bool, ...]:
    """Whether backward is tried in two, and whole: not whole if the halves take no longer and keep
    no more between them."""
    if not task.in_two:
        return (False,)
    quick = all(s.input + s.weight <= s.backward * (1 + _TOLERANCE) for s in task.costs.stages)
    lean = all(kept.after_input <= kept.after_forward for kept in task.kept)
    return (True,) if quick and lean else (True, False)


def _must_fit(task: Task) -> None:
    """Raises DoesNotFit if a place cannot hold one microbatch of each of its stages."""
    for place, limit in enumerate(task.limits):
        stages = [s for s, at in enumerate(task.places) if at == place]
        needs = sum(task.kept[s].after_forward for s in stages)
        if needs > limit:
            raise DoesNotFit(
                f"pipeline rank {place} needs {format_bytes(needs)} for one microbatch of its "
                f"stages {', '.join(map(str, stages))}, and {format_bytes(max(limit, 0))} are left: "
                "use smaller microbatches, more recompute or more stages"
            )


def _timings(task: Task) -> Iterator[tuple[str, Timing]]:
    """Candidates: what has a name, and what policies schedule."""
    candidates = [*_named(task)]
    for in_two in _ways(task):
        candidates += [("policy", one) for one in by_policies(task, in_two, _STARTS)]
    for name, schedule in candidates:
        timing = _best_of(task, schedule)
        if timing is not None:
            yield name, timing


def _named(task: Task) -> Iterator[tuple[str, Schedule]]:
    """The named schedules of these places."""
    chunks, rest = divmod(len(task.places), task.num_places)
    for name, kind in SCHEDULES.items():
        if rest or (kind.in_two and not task.in_two) or kind.chunks not in (None, chunks):
            continue
        if (kind.chunks is None and chunks < 2) or kind.misfit(task.num_places, task.microbatches):
            continue
        schedule = scheduled(name, task.num_places, task.microbatches, chunks)
        if schedule.places == task.places:
            yield name, schedule


def _best_of(task: Task, schedule: Schedule) -> Timing | None:
    """The schedule's timing, or that with halves joined where they follow each other if this is
    shorter; None if it takes too much memory."""
    several = (schedule, _joined(schedule)) if len(_ways(task)) > 1 else (schedule,)
    fits = [
        timed(one, task.costs, task.flow)
        for one in several
        if all(map(float.__le__, peaks(one, task.kept), _with_rounding(task.limits)))
    ]
    return min(fits, key=lambda timing: timing.step_time, default=None)


def _with_rounding(limits: Iterable[float]) -> list[float]:
    return [limit * (1 + _TOLERANCE) for limit in limits]


def _joined(schedule: Schedule) -> Schedule:
    """With I and W of a microbatch that follow each other as one B."""
    orders = []
    for order in schedule.orders:
        out: list[Action] = []
        for action in order:
            if action.body == WEIGHT and out and out[-1] == replace(action, body=INPUT):
                out[-1] = replace(action, body=BACKWARD)
            else:
                out.append(action)
        orders.append(tuple(out))
    return replace(schedule, orders=tuple(orders))


def _better(
    task: Task, best: tuple[str, Timing], candidates: Iterable[tuple[str, Schedule]]
) -> tuple[str, Timing]:
    """The best, or the first candidate that is shorter."""
    for name, schedule in candidates:
        timing = _best_of(task, schedule)
        if timing is not None and timing.step_time < best[1].step_time:
            best = (name, timing)
    return best


def _proved(timing: Timing, bound: float) -> bool:
    return timing.step_time <= bound * (1 + _TOLERANCE)


def _exact(
    task: Task, best: tuple[str, Timing], bound: float, seconds: float
) -> tuple[tuple[str, Timing], float]:
    """The best, with what the integer program finds, and its bound."""
    if num_pairs(task, task.in_two) > _MOST_PAIRS:
        return best, bound
    proved = solve_exactly(_relaxed(task), task.in_two, bound, best[1].step_time, seconds)
    if proved.schedule is not None and not schedule_faults(proved.schedule, task.flow):
        best = _better(task, best, [("exact", proved.schedule)])
    return best, max(bound, proved.bound)


def _relaxed(task: Task) -> Task:
    """The task in which halves take no longer than the whole and keep no more between them: no
    schedule of the task, halved or whole, is shorter than the best of its schedules in two."""
    stages = tuple(
        replace(
            s, weight=max(0.0, min(s.weight, s.backward - s.input)), input=min(s.input, s.backward)
        )
        for s in task.costs.stages
    )
    kept = tuple(replace(k, after_input=min(k.after_input, k.after_forward)) for k in task.kept)
    return replace(task, costs=replace(task.costs, stages=stages), kept=kept)
