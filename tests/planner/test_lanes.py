"""Slots for messages: every schedule runs through with as many as are given, step after step, and
not all do with fewer."""

from __future__ import annotations

from collections import defaultdict

import pytest
from test_schedules import every_schedule

from planner.schedules.flow import Flow, chain
from planner.schedules.lanes import Lane, lanes
from planner.schedules.registry import scheduled
from planner.schedules.schedule import Schedule

_Key = tuple[int, int, bool]


def runs_through(schedule: Schedule, flow: Flow, slots: dict[_Key, Lane], steps: int = 2) -> bool:
    """Whether all actions run, in any order that messages allow: a place waits for what its next
    action reads and, after it, for a slot for each message."""
    sent: dict[_Key, list[int]] = defaultdict(list)
    read: dict[_Key, set[int]] = defaultdict(set)
    places = [_Place(schedule, flow, slots, place, steps) for place in range(schedule.num_places)]
    while any(place.advance(sent, read) for place in places):
        pass
    return all(place.done for place in places)


class _Place:
    def __init__(
        self, schedule: Schedule, flow: Flow, slots: dict[_Key, Lane], place: int, steps: int
    ) -> None:
        self.flow, self.slots, self.m = flow, slots, schedule.microbatches
        self.todo = [
            (what, action, step)
            for step in range(steps)
            for action in schedule.orders[place]
            for what in ("read", "send")
        ]
        self.at = 0

    @property
    def done(self) -> bool:
        return self.at == len(self.todo)

    def advance(self, sent: dict[_Key, list[int]], read: dict[_Key, set[int]]) -> bool:
        before = self.at
        while not self.done and self._one(sent, read):
            self.at += 1
        return self.at > before

    def _one(self, sent: dict[_Key, list[int]], read: dict[_Key, set[int]]) -> bool:
        what, action, step = self.todo[self.at]
        forward = action.body == "F"
        pairs = [] if action.body == "W" else self.flow.forward if forward else self.flow.backward
        name = step * self.m + action.microbatch
        keys = [
            (*pair, forward) for pair in pairs if pair[0 if what == "send" else 1] == action.stage
        ]
        if what == "read":
            if any(name not in sent[key] for key in keys):
                return False
            for key in keys:
                read[key].add(name)
            return True
        for key in keys:
            if name in sent[key]:
                continue
            before = len(sent[key]) - self.slots[key].slots
            if before >= 0 and sent[key][before] not in read[key]:
                return False
            sent[key].append(name)
        return True


def test_every_schedule_runs_through_its_slots() -> None:
    count = 0
    for schedule in every_schedule(places=4, microbatches=9):
        flow = chain(schedule.num_stages)
        assert runs_through(schedule, flow, lanes(schedule, flow, ahead=0)), schedule
        count += 1
    assert count > 150


def test_values_that_skip_stages_have_slots_of_their_own() -> None:
    schedule = scheduled("1f1b", 4, 8)
    pairs = ((0, 1), (1, 2), (2, 3), (0, 3))
    flow = Flow(forward=pairs, backward=tuple((b, a) for a, b in pairs))
    found = lanes(schedule, flow)
    assert runs_through(schedule, flow, found)
    assert found[0, 3, True].slots > found[0, 1, True].slots
    assert max(lane.slots for lane in found.values()) < 8
    assert {lane.order for lane in found.values()} == {tuple(range(8))}


@pytest.mark.parametrize("name", ["1f1b", "interleaved", "zbv"])
def test_with_fewer_slots_a_schedule_may_stand_still(name: str) -> None:
    schedule = scheduled(name, 4, 8)
    pairs = ((0, 1), (1, 2), (2, 3), (0, 3))
    flow = Flow(forward=pairs, backward=tuple((b, a) for a, b in pairs))
    enough = lanes(schedule, flow, ahead=0)
    one = {key: Lane(order=lane.order, slots=1) for key, lane in enough.items()}
    assert runs_through(schedule, flow, enough)
    assert not runs_through(schedule, flow, one)
