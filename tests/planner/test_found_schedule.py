"""Schedules that are found: against all orders of small tasks, timed by a plain loop, and against
the named schedules of larger ones."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from cost_models.errors import DoesNotFit
from planner.program.actions import Action
from planner.schedules.check_schedule import schedule_faults
from planner.schedules.exchanges import exchanges
from planner.schedules.find.found import find
from planner.schedules.find.lane_paths import num_unordered, reach, unordered
from planner.schedules.find.least_step import least_step
from planner.schedules.find.list_scheduling import list_schedule
from planner.schedules.find.task import Task, lanes_of, schedule_of
from planner.schedules.in_flight import Kept, peaks
from planner.schedules.registry import SCHEDULES, scheduled
from planner.schedules.timing import Costs, StageSeconds, timed, uniform
from tests.planner.rendezvous import stuck

Order = tuple[Action, ...]
UNLIMITED = float("inf")
#: The integer programs here take a second; a machine that stands still meanwhile must not end them.
UNHURRIED = 3600.0


def drawn(draw: random.Random, places: tuple[int, ...], microbatches: int, in_two: bool) -> Task:
    """A task of random times, transfers and memory, of which some microbatches fit."""
    n, p = len(places), max(places) + 1
    split = [(draw.uniform(0.5, 1.5), draw.uniform(0.5, 1.5), draw.uniform(0, 1.5)) for _ in places]
    stages = tuple(StageSeconds(forward=f, backward=i + w, input=i, weight=w) for f, i, w in split)
    pairs = [(u, v) for u in range(n) for v in range(n) if abs(u - v) == 1]
    delay = draw.choice((0.0, 0.3))
    kept = tuple(Kept(draw.uniform(0.5, 1.0), draw.uniform(0.0, 0.5)) for _ in places)
    least = [
        sum(k.after_forward for k, at in zip(kept, places, strict=True) if at == r)
        for r in range(p)
    ]
    scale = draw.choice((1.0, 1.5, 2.0, UNLIMITED))
    return Task(
        places=places,
        microbatches=microbatches,
        costs=Costs(
            stages=stages,
            transfers={pair: delay * draw.random() for pair in pairs},
            overlapped=draw.random() < 0.7,
            before=tuple(draw.choice((0.0, 0.4)) for _ in range(p)),
            after=tuple(draw.choice((0.0, 0.7)) for _ in range(p)),
            together=draw.random() < 0.3,
        ),
        kept=kept,
        limits=tuple(scale * x for x in least),
        in_two=in_two,
    )


def orders_of(
    stages: Sequence[int], microbatches: int, in_two: bool, fifo: bool
) -> Iterator[Order]:
    """All orders of a place's actions: each microbatch F, I, W or F, B; `fifo`: every body runs its
    microbatches in order."""
    bodies = "FIW" if in_two else "FB"
    todo = {(s, b, k) for s in stages for b in bodies for k in range(microbatches)}

    def extend(done: Order, left: frozenset[tuple[int, str, int]]) -> Iterator[Order]:
        if not left:
            yield done
        for s, b, k in left:
            at = bodies.index(b)
            before_it = {(s, bodies[at - 1], k)} if at else set()
            if fifo and k:
                before_it.add((s, b, k - 1))
            if not before_it & left:
                yield from extend((*done, Action(b, k, s)), left - {(s, b, k)})

    yield from extend((), frozenset(todo))


def plain_time(task: Task, orders: Sequence[Order]) -> float:
    """The step by a loop that goes round until nothing changes, infinite if it deadlocks. Channels
    are not shared by messages that would meet: transfers are shorter than what makes them."""
    costs = task.costs
    end: dict[Action, float] = {}
    left = list(costs.before)
    at = [0] * len(orders)
    moved = True
    while moved:
        moved = False
        for place, order in enumerate(orders):
            while at[place] < len(order):
                action = order[at[place]]
                step = -1 if action.body == "F" else 1
                source = action.stage + step
                arrival = 0.0
                if action.body != "W" and 0 <= source < len(task.places):
                    bodies = "F" if action.body == "F" else "IB"
                    ends = [end.get(Action(b, action.microbatch, source)) for b in bodies]
                    known = [e for e in ends if e is not None]
                    if not known:
                        break
                    arrival = known[0] + task.transfer(source, action.stage)
                seconds = costs.stages[action.stage].of(action.body)
                end[action] = left[place] = max(left[place], arrival) + seconds
                target = action.stage - step
                if action.body != "W" and 0 <= target < len(task.places) and not costs.overlapped:
                    left[place] += task.transfer(action.stage, target)
                at[place] += 1
                moved = True
    if any(i < len(order) for i, order in zip(at, orders, strict=True)):
        return UNLIMITED
    ends = [max(left)] * len(left) if costs.together else left
    return max(e + a for e, a in zip(ends, costs.after, strict=True))


def plain_peak(task: Task, order: Order) -> float:
    """The most bytes that a place holds."""
    held, most = 0.0, 0.0
    for action in order:
        kept = task.kept[action.stage]
        held += kept.after_forward if action.body == "F" else 0.0
        most = max(most, held)
        held -= {
            "F": 0.0,
            "I": kept.after_forward - kept.after_input,
            "W": kept.after_input,
            "B": kept.after_forward,
        }[action.body]
    return most


@cache
def all_orders(stages: tuple[int, ...], m: int, in_two: bool, fifo: bool) -> tuple[Order, ...]:
    return tuple(orders_of(stages, m, in_two, fifo))


def best_of_all(task: Task, in_two: bool, fifo: bool = True) -> float:
    """The shortest step of all orders that fit."""
    fitting = []
    for place, limit in enumerate(task.limits):
        stages = tuple(s for s, at in enumerate(task.places) if at == place)
        every = all_orders(stages, task.microbatches, in_two, fifo)
        fitting.append([o for o in every if plain_peak(task, o) <= limit * (1 + 1e-9)])
    return min(plain_time(task, orders) for orders in itertools.product(*fitting))


SMALL = [((0,), 3), ((0, 1), 2), ((0, 1), 3), ((0, 1, 2), 2), ((0, 0), 2), ((0, 1, 1, 0), 1)]


@pytest.mark.parametrize("in_two", [False, True])
@pytest.mark.parametrize(("places", "m"), SMALL)
def test_small_tasks_are_solved_to_the_best_of_all_orders(
    places: tuple[int, ...], m: int, in_two: bool
) -> None:
    draw = random.Random(11 * m + len(places))
    for _ in range(3):
        task = drawn(draw, places, m, in_two)
        best = best_of_all(task, in_two)
        assert least_step(task) <= best * (1 + 1e-9)
        found = find(task, actions=4000, seconds=UNHURRIED)
        assert found.timing.step_time == pytest.approx(best, rel=1e-7)
        assert found.bound == pytest.approx(best, rel=1e-7)
        assert found.gap < 1e-7


def test_microbatches_in_another_order_are_no_better() -> None:
    """The reason why a lane runs its microbatches in order, on all orders whatever."""
    draw = random.Random(5)
    for _ in range(2):
        task = drawn(draw, (0, 1), 2, True)
        assert best_of_all(task, True, fifo=False) == pytest.approx(best_of_all(task, True))


def test_bounds_hold_if_a_whole_backward_is_shorter_than_its_halves() -> None:
    draw = random.Random(8)
    for _ in range(6):
        task = drawn(draw, (0, 1), 2, True)
        stages = tuple(replace(s, backward=0.8 * s.backward) for s in task.costs.stages)
        task = replace(task, costs=replace(task.costs, stages=stages))
        best = min(best_of_all(task, True), best_of_all(task, False))
        found = find(task, actions=4000, seconds=UNHURRIED)
        assert found.bound <= found.timing.step_time * (1 + 1e-9)
        assert found.timing.step_time <= best * (1 + 1e-9)


def test_pairs_are_counted_without_listing_them() -> None:
    draw = random.Random(2)
    for places in ((0, 1), (0, 1, 0, 1), (0, 1, 1, 0)):
        for in_two in (True, False):
            lanes = lanes_of(drawn(draw, places, 4, in_two), in_two)
            pairs = unordered(lanes, reach(lanes), 4)
            assert num_unordered(lanes, reach(lanes), 4) == len(pairs) > 0


def shapes(p: int) -> list[tuple[int, ...]]:
    return [tuple(range(p)), tuple(range(p)) * 2, (*range(p), *reversed(range(p)))]


@pytest.mark.parametrize(("p", "m"), [(3, 7), (4, 12)])
def test_what_is_found_fits_and_is_never_longer_than_a_named_schedule_that_fits(
    p: int, m: int
) -> None:
    draw = random.Random(p)
    for places in shapes(p):
        task = drawn(draw, places, m, True)
        found = find(task, actions=20_000, seconds=0)
        schedule = found.timing.schedule
        assert schedule_faults(schedule) == []
        assert timed(schedule, task.costs) == found.timing
        assert all(
            a <= b * (1 + 1e-9)
            for a, b in zip(peaks(schedule, task.kept), task.limits, strict=True)
        )
        assert found.bound <= found.timing.step_time * (1 + 1e-9)
        for name, kind in SCHEDULES.items():
            if (
                not kind.misfit(p, m)
                and kind.chunks in (None, len(places) // p)
                and (kind.chunks or len(places) > p)
            ):
                named = scheduled(name, p, m, len(places) // p)
                fits = all(
                    a <= b for a, b in zip(peaks(named, task.kept), task.limits, strict=True)
                )
                if named.places == places and fits:
                    assert found.timing.step_time <= timed(named, task.costs).step_time


def test_random_schedules_lock_up_neither_memory_nor_messages() -> None:
    """Random priorities under limits of one to two microbatches: every place reaches its end; and
    whatever the order, sends that block until they are received do not block each other."""
    draw = random.Random(17)
    for number in range(120):
        p, m = draw.randint(1, 4), draw.randint(1, 9)
        task = drawn(draw, draw.choice(shapes(p)), m, draw.random() < 0.5)
        lanes = lanes_of(task, task.in_two)
        numbers = np.random.default_rng(number)
        free, turns = list_schedule(
            lanes, m, np.zeros(p), np.array(task.limits), numbers.integers(1, m + 2, p), True,
            numbers.random((len(lanes.place), m)), draw.random() < 0.5, draw.choice((0.0, 1.0, 9.0)),
            False, draw.random() < 0.5,
        )  # fmt: skip
        assert np.isfinite(free).all()
        rows = [turns[a:b].tolist() for a, b in itertools.pairwise(lanes.at * m)]
        schedule = schedule_of(task, lanes, rows)
        assert schedule_faults(schedule) == []
        assert stuck(exchanges(schedule, ahead=number % 3), rendezvous=True) == []
        assert all(
            map(float.__le__, peaks(schedule, task.kept), (x * (1 + 1e-9) for x in task.limits))
        )


def test_two_stages_a_place_under_a_tight_limit() -> None:
    """Two microbatches and a half fit. Room for the oldest one is kept beside those that are not
    older, not beside all: older ones free theirs in time. Beside all, the step would be 40."""
    task = Task(
        places=(0, 1, 1, 0),
        microbatches=6,
        costs=Costs(stages=uniform(4, 1.0, 1.0, 1.0)),
        kept=(Kept(1.0, 0.5),) * 4,
        limits=(5.0, 5.0),
        in_two=False,
    )
    found = find(task, actions=0, seconds=0)
    assert found.timing.step_time == pytest.approx(39.0)
    assert found.gap < 1e-9


@pytest.mark.parametrize(
    ("name", "places", "in_two"),
    [
        ("1f1b", (0, 1, 2, 3), False),
        ("zbh1", (0, 1, 2, 3), True),
        ("zbv", (0, 1, 2, 2, 1, 0), True),
    ],
)
def test_named_schedules_are_proved_best_where_they_are(
    name: str, places: tuple[int, ...], in_two: bool
) -> None:
    """At their own memory, on uniform stages: the bound is their closed form."""
    n, p = len(places), max(places) + 1
    costs = Costs(stages=uniform(n, 1.0, 1.0, 1.0))
    task = Task(
        places=places,
        microbatches=3 * p,
        costs=costs,
        kept=(Kept(1.0, 0.5),) * n,
        limits=(float(n),) * p,
        in_two=in_two,
    )
    found = find(task, actions=0, seconds=0)
    assert found.timing.step_time == timed(scheduled(name, p, 3 * p), costs).step_time
    assert found.gap == pytest.approx(0.0, abs=1e-12)


def test_unequal_stages_are_scheduled_in_less_than_any_named_schedule() -> None:
    """An embedding and a loss that take longer than the stages between them, and little W."""
    times = [(2.0, 1.0, 1.5), (1.0, 1.2, 0.4), (1.0, 1.2, 0.4), (1.5, 2.0, 1.0)]
    stages = tuple(StageSeconds(forward=f, backward=i + w, input=i, weight=w) for f, i, w in times)
    costs = Costs(stages=stages)
    task = Task(
        places=(0, 1, 2, 3),
        microbatches=12,
        costs=costs,
        kept=(Kept(1.0, 0.3),) * 4,
        limits=(5.0,) * 4,
    )
    found = find(task, actions=50_000, seconds=0)
    named = [timed(scheduled(name, 4, 12), costs).step_time for name in ("gpipe", "1f1b", "zbh1")]
    assert found.timing.step_time < min(named)
    assert found.gap < 0.02
    assert find(task, actions=50_000, seconds=0) == found


def test_halves_that_keep_more_between_them_are_run_whole_if_memory_is_short() -> None:
    task = Task(
        places=(0, 1),
        microbatches=3,
        costs=Costs(stages=uniform(2, 1.0, 1.0, 1.0)),
        kept=(Kept(1.0, 1.5),) * 2,
        limits=(1.0, 1.0),
    )
    found = find(task, actions=1000, seconds=UNHURRIED)
    assert {a.body for order in found.timing.schedule.orders for a in order} == {"F", "B"}
    assert found.timing.step_time == pytest.approx(18.0)


def test_a_place_that_cannot_hold_one_microbatch_is_named() -> None:
    task = Task(
        places=(0, 1, 1, 0),
        microbatches=4,
        costs=Costs(stages=uniform(4, 1.0, 1.0, 1.0)),
        kept=(Kept(2.0**30, 2.0**29),) * 4,
        limits=(2.0**31, 2.0**30),
    )
    with pytest.raises(
        DoesNotFit, match=r"pipeline rank 1 needs 2.* stages 1, 2, and 1.* are left"
    ):
        find(task)
