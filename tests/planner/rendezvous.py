"""Places that exchange messages by the rules of `planner/schedules/exchanges.py`, to see whether they
block each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from planner.schedules.exchanges import Exchange, Message

__all__ = ["stuck"]


def stuck(orders: Sequence[Sequence[Exchange]], rendezvous: bool) -> list[Exchange]:
    """The exchange at which each place is stuck, none if all places reach their end."""
    at, ran = [0] * len(orders), [False] * len(orders)
    posted: set[Message] = set()
    arrived: set[Message] = set()
    queues: dict[tuple[int, int], list[Message]] = defaultdict(list)
    place_of = {e.action: place for place, order in enumerate(orders) for e in order}

    def deliver() -> None:
        for queue in queues.values():
            while queue and queue[0] in posted:
                arrived.add(queue.pop(0))

    moved = True
    while moved:
        moved = False
        for place, order in enumerate(orders):
            while at[place] < len(order):
                exchange = order[at[place]]
                posted.update(exchange.posts)
                deliver()
                if not ran[place]:
                    if not arrived.issuperset(exchange.waits):
                        break
                    for message in exchange.sends:
                        queues[place, place_of[message.target]].append(message)
                    ran[place] = moved = True
                    deliver()
                if rendezvous and not arrived.issuperset(exchange.sends):
                    break
                at[place], ran[place], moved = at[place] + 1, False, True
    return [order[i] for order, i in zip(orders, at, strict=True) if i < len(order)]
