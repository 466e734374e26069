"""Which stages send to which, and the order in which the actions of a schedule can then run.

A forward waits for the forwards of the stages that its stage reads; a backward, or the input half
of one, for those of the stages that send it gradients. All else follows from the order of a place.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from planner.program.actions import Action
from planner.schedules.schedule import BACKWARD, FORWARD, INPUT, Schedule

__all__ = ["Arrows", "Flow", "arrows", "beats", "chain", "runnable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """(stage that sends, stage that receives) of the activations, and of the gradients, of a
    microbatch."""

    forward: tuple[tuple[int, int], ...]
    backward: tuple[tuple[int, int], ...]


def chain(stages: int) -> Flow:
    """Every stage sends to the next one, and a gradient to the one before it."""
    pairs = [(stage, stage + 1) for stage in range(stages - 1)]
    return Flow(forward=tuple(pairs), backward=tuple((v, u) for u, v in pairs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrows:
    """The actions of all places as numbers, place after place, and what each waits for.

    `readers[i]` are the actions of other stages that read what action `i` makes, `needs[i]` how
    many such results action `i` reads; `firsts[p]` is the number of place `p`'s first action, with
    the number of actions at the end.
    """

    actions: tuple[Action, ...]
    firsts: tuple[int, ...]
    place_of: tuple[int, ...]
    readers: tuple[tuple[int, ...], ...]
    needs: tuple[int, ...]


def arrows(schedule: Schedule, flow: Flow | None = None) -> Arrows:
    """The actions of a schedule and what goes between them; linear in both. A reader without a
    writer, which `check_schedule` reports, waits for nothing here."""
    flow = flow or chain(schedule.num_stages)
    actions = tuple(action for order in schedule.orders for action in order)
    forward = {(a.stage, a.microbatch): i for i, a in enumerate(actions) if a.body == FORWARD}
    backward = {
        (a.stage, a.microbatch): i for i, a in enumerate(actions) if a.body in (BACKWARD, INPUT)
    }
    readers: list[list[int]] = [[] for _ in actions]
    needs = [0] * len(actions)
    for pairs, numbers in ((flow.forward, forward), (flow.backward, backward)):
        targets: dict[int, list[int]] = {}
        for source, target in pairs:
            targets.setdefault(source, []).append(target)
        for (stage, microbatch), i in numbers.items():
            for target in targets.get(stage, ()):
                reader = numbers.get((target, microbatch))
                if reader is not None:
                    readers[i].append(reader)
                    needs[reader] += 1
    firsts = [0]
    for order in schedule.orders:
        firsts.append(firsts[-1] + len(order))
    return Arrows(
        actions=actions,
        firsts=tuple(firsts),
        place_of=tuple(p for p, order in enumerate(schedule.orders) for _ in order),
        readers=tuple(map(tuple, readers)),
        needs=tuple(needs),
    )


def runnable(arrows: Arrows) -> list[int]:
    """The actions in an order in which they can run, each place in its own order: all of them, or
    if the schedule deadlocks, those that can run before it does. Linear."""
    missing = list(arrows.needs)
    at = list(arrows.firsts[:-1])
    ready = deque(range(len(at)))
    order: list[int] = []
    while ready:
        place = ready.popleft()
        i, end = at[place], arrows.firsts[place + 1]
        while i < end and not missing[i]:
            order.append(i)
            for reader in arrows.readers[i]:
                missing[reader] -= 1
                there = arrows.place_of[reader]
                if there != place and not missing[reader] and at[there] == reader:
                    ready.append(there)
            i += 1
        at[place] = i
    return order


def beats(arrows: Arrows) -> list[int]:
    """When each action runs if every action takes one beat and messages take none. Sorted by their
    beats, the actions are in an order in which they can run. For schedules without deadlock."""
    out = [0] * len(arrows.actions)
    free = [0] * (len(arrows.firsts) - 1)
    for i in runnable(arrows):
        place = arrows.place_of[i]
        out[i] = max(out[i], free[place])
        free[place] = out[i] + 1
        for reader in arrows.readers[i]:
            out[reader] = max(out[reader], out[i] + 1)
    return out
