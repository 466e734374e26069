"""The sends and receives of a schedule, derived from its actions: the only place that does so.

A message takes what one action made to one action of another place. Messages of the same (sending
place, receiving place) are a **channel**; they arrive in the order in which they are sent, and
nothing in one channel waits for another: a library that matches messages by pair of ranks alone
must be given a group, or a tag, for each direction.

What a place does for an action, in this order:

1. it **posts** the receives listed, and does not wait;
2. it **waits** for the messages that the action reads;
3. it runs the action;
4. it **sends** the messages listed, and does not wait; what is sent is kept until it has left.

Rules, from which follows that neither bubbles nor deadlocks come from the order of receives:

* A channel's sends are in the order of the sender's actions, and its receives are posted in that
  order, whatever the order in which they are read.
* Before an action, the receives are posted for the next `ahead + 1` actions that read from the
  channel, that action included, and for all that come before them in the channel. So a message may
  leave as soon as it is made, unless the receiver is more than `ahead` messages behind.
* Before an action, the receives are posted for all that other places make until it ends, if every
  action takes equally long (`flow.beats`).

If the actions can run at all, they run by the second rule: what an action reads has been sent, its
receive is posted, and so are those before it in the channel. By the third they run even if a send
blocks until it is received (rendezvous): in the order of beats, every receiver posts a message before
the first of its actions that does not come before the one that makes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from planner.program.actions import Action
from planner.schedules.flow import Arrows, Flow, arrows, beats
from planner.schedules.schedule import Schedule

__all__ = ["AHEAD", "Exchange", "Message", "exchanges"]

#: Receives posted beyond the one that is waited for: the next message travels while this one is
#: worked on.
AHEAD = 1


@dataclass(frozen=True, slots=True)
class Message:
    """What `source` makes for `target`, which runs at another place."""

    source: Action
    target: Action

    def __str__(self) -> str:
        return f"{self.source}>{self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """An action, and what its place does around it."""

    action: Action
    posts: tuple[Message, ...]
    waits: tuple[Message, ...]
    sends: tuple[Message, ...]


#: A message as (number of its source, number of its target).
_Pair = tuple[int, int]


def exchanges(
    schedule: Schedule, flow: Flow | None = None, ahead: int = AHEAD
) -> tuple[tuple[Exchange, ...], ...]:
    """For each place its actions, in order, with the receives to post before each, the messages to
    wait for, and the messages to send after it. Linear in actions and messages."""
    graph = arrows(schedule, flow)
    sends, waits = _messages(graph)
    posts = _posts(graph, sends, waits, ahead)
    message = {
        pair: Message(graph.actions[pair[0]], graph.actions[pair[1]])
        for pairs in sends
        for pair in pairs
    }
    every = [
        Exchange(
            action=action,
            posts=tuple(message[pair] for pair in posts[i]),
            waits=tuple(message[pair] for pair in waits[i]),
            sends=tuple(message[pair] for pair in sends[i]),
        )
        for i, action in enumerate(graph.actions)
    ]
    edges = zip(graph.firsts, graph.firsts[1:], strict=False)
    return tuple(tuple(every[first:end]) for first, end in edges)


def _messages(graph: Arrows) -> tuple[list[list[_Pair]], list[list[_Pair]]]:
    """The messages that every action sends, and those that it reads."""
    sends: list[list[_Pair]] = [[] for _ in graph.actions]
    waits: list[list[_Pair]] = [[] for _ in graph.actions]
    for i, readers in enumerate(graph.readers):
        for reader in readers:
            if graph.place_of[reader] != graph.place_of[i]:
                sends[i].append((i, reader))
                waits[reader].append((i, reader))
    return sends, waits


def _posts(
    graph: Arrows, sends: Sequence[Sequence[_Pair]], waits: Sequence[Sequence[_Pair]], ahead: int
) -> list[list[_Pair]]:
    """The receives to post before every action."""
    channels: dict[_Pair, list[_Pair]] = defaultdict(list)  # in the order in which they are sent
    reads: dict[_Pair, list[_Pair]] = defaultdict(list)  # in the order in which they are read
    for lists, ordered in ((sends, channels), (waits, reads)):
        for pairs in lists:
            for pair in pairs:
                ordered[graph.place_of[pair[0]], graph.place_of[pair[1]]].append(pair)
    beat = beats(graph)
    posts: list[list[_Pair]] = [[] for _ in graph.actions]
    for channel, messages in channels.items():
        actions = range(graph.firsts[channel[1]], graph.firsts[channel[1] + 1])
        soon = _read_soon(messages, reads[channel], actions, ahead)
        posted = 0
        for i, upto in zip(actions, soon, strict=True):
            while posted < len(messages) and (
                posted < upto or beat[messages[posted][0]] <= beat[i]
            ):
                posts[i].append(messages[posted])
                posted += 1
    return posts


def _read_soon(
    messages: Sequence[_Pair], reads: Sequence[_Pair], actions: range, ahead: int
) -> list[int]:
    """How many messages of a channel must have been posted before each action, so that the next
    `ahead + 1` actions that read from it have theirs."""
    rank = {pair: k for k, pair in enumerate(messages, 1)}
    needed: dict[int, int] = {}  # by action that reads, in order
    for pair in reads:
        needed[pair[1]] = max(needed.get(pair[1], 0), rank[pair])
    readers, out, k = list(needed), [], 0
    for i in actions:
        while k < len(readers) and readers[k] < i:
            k += 1
        out.append(max((needed[j] for j in readers[k : k + ahead + 1]), default=0))
    return out
