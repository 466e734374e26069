"""Room for the messages of a schedule, if a message lies in a slot from when it is sent until it is
read, and a sender waits for a free slot.

Schedule -> for what one stage sends to another in forward or in backward: the microbatches in the
order in which they are sent, and how many slots are enough. Message k waits until message k - slots
is read. If every action takes one beat (`flow.beats`), that is read in a beat no later than the one
at whose end message k is sent; so all actions and these waits are in an order in which they can run,
and with equal actions nothing waits.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate

from planner.schedules.exchanges import AHEAD
from planner.schedules.flow import Flow, arrows, beats
from planner.schedules.schedule import FORWARD, Schedule

__all__ = ["Lane", "lanes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """What one stage sends to another: the microbatches in the order of the sender, and the slots
    in which messages lie until they are read."""

    order: tuple[int, ...]
    slots: int


def lanes(schedule: Schedule, flow: Flow, ahead: int = AHEAD) -> dict[tuple[int, int, bool], Lane]:
    """The lanes by sending stage, receiving stage, and whether it is in forward. With `ahead` slots
    more than are needed, if there are as many messages."""
    graph = arrows(schedule, flow)
    beat = beats(graph)
    sent: dict[tuple[int, int, bool], list[tuple[int, int]]] = defaultdict(list)
    for source, readers in enumerate(graph.readers):
        for reader in readers:
            action = graph.actions[source]
            key = (action.stage, graph.actions[reader].stage, action.body == FORWARD)
            sent[key].append((source, reader))
    return {
        key: Lane(
            order=tuple(graph.actions[source].microbatch for source, _ in sorted(pairs)),
            slots=min(
                _slots([(beat[source], beat[reader]) for source, reader in sorted(pairs)]) + ahead,
                len(pairs),
            ),
        )
        for key, pairs in sent.items()
    }


def _slots(messages: list[tuple[int, int]]) -> int:
    """Slots with which nothing waits; `messages` are the beats in which each is made and read, in the
    order in which they are sent. A message counts as read when it and all before it are."""
    read = list(accumulate((reader for _, reader in messages), max))
    slots = 1
    for k, (made, _) in enumerate(messages):
        while k >= slots and read[k - slots] > made:
            slots += 1
    return slots
