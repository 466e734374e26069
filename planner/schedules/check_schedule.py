"""Whether a schedule can run: every action once, in an order that its place and the others allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from cost_models.errors import BadValue
from planner.program.actions import Action
from planner.schedules.flow import Arrows, Flow, arrows, runnable
from planner.schedules.schedule import BACKWARD, BODIES, FORWARD, INPUT, WEIGHT, Schedule

__all__ = ["checked", "schedule_faults"]


def checked(schedule: Schedule, flow: Flow | None = None) -> Schedule:
    """The schedule itself. Raises BadValue with its first fault, if it has any."""
    for fault in schedule_faults(schedule, flow):
        raise BadValue(f"schedule {schedule.name!r} cannot run: {fault}")
    return schedule


def schedule_faults(schedule: Schedule, flow: Flow | None = None) -> list[str]:
    """What keeps a schedule from running, one line each; a deadlock is looked for if there is
    nothing else."""
    faults = [*_foreign(schedule), *_counts(schedule), *_disorder(schedule)]
    if not faults:
        graph = arrows(schedule, flow)
        if len(order := runnable(graph)) < len(graph.actions):
            faults.append(_deadlock(graph, order))
    return faults


def _foreign(schedule: Schedule) -> Iterator[str]:
    """Actions that are none of the schedule's: another place's, or of an unknown body."""
    for place, order in enumerate(schedule.orders):
        for action in order:
            if action.body not in BODIES:
                yield f"{action} is none of the bodies {', '.join(BODIES)} (place {place})"
            elif action.stage >= schedule.num_stages:
                yield f"{action} is of stage {action.stage}, the last is {schedule.num_stages - 1}"
            elif schedule.places[action.stage] != place:
                own = schedule.places[action.stage]
                yield f"{action} is in the order of place {place}, its stage is at place {own}"
            elif action.microbatch >= schedule.microbatches:
                yield f"{action} is of microbatch {action.microbatch} of {schedule.microbatches}"


def _counts(schedule: Schedule) -> Iterator[str]:
    """Actions that are missing, or run twice."""
    counts = Counter(action for order in schedule.orders for action in order)
    yield from (f"{action} runs {n} times" for action, n in counts.items() if n > 1)
    for stage in range(schedule.num_stages):
        for microbatch in range(schedule.microbatches):
            bodies = [b for b in BODIES if Action(b, microbatch, stage) in counts]
            if bodies not in ([FORWARD, BACKWARD], [FORWARD, INPUT, WEIGHT]):
                yield (
                    f"stage {stage} runs {', '.join(bodies) or 'nothing'} for microbatch "
                    f"{microbatch}: it must run F and B, or F, I and W"
                )


def _disorder(schedule: Schedule) -> Iterator[str]:
    """Halves of a stage's microbatch in the wrong order."""
    before = {BACKWARD: FORWARD, INPUT: FORWARD, WEIGHT: INPUT}
    for order in schedule.orders:
        at = {action: i for i, action in enumerate(order)}
        for action, i in at.items():
            first = Action(before.get(action.body, ""), action.microbatch, action.stage)
            if at.get(first, i) > i:
                yield f"{action} runs before {first}"


def _deadlock(graph: Arrows, order: list[int]) -> str:
    """A circle of actions, each of which waits for the next."""
    done = set(order)
    writers: dict[int, int] = {}
    for i, readers in enumerate(graph.readers):
        if i not in done:
            writers |= dict.fromkeys(readers, i)
    heads: dict[int, int] = {}  # the first action of each place that did not run
    for i in range(len(graph.actions)):
        if i not in done:
            heads.setdefault(graph.place_of[i], i)
    seen: list[int] = []
    head = next(iter(heads.values()))
    while head not in seen:
        seen.append(head)
        head = heads[graph.place_of[writers[head]]]
    names = graph.actions
    waits = [
        f"{names[i]} (place {graph.place_of[i]}) waits for {names[writers[i]]}"
        for i in seen[seen.index(head) :]
    ]
    return f"deadlock: {'; '.join(waits)}"
