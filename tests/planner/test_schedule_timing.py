"""Step times, bubbles and microbatches in flight against closed forms (Qi et al., arXiv 2401.10241;
Narayanan et al., arXiv 2104.04473)."""

from __future__ import annotations

import random

import pytest

from planner.schedules.csv_text import read_csv
from planner.schedules.in_flight import Kept, held, microbatches_in_flight, peaks
from planner.schedules.registry import SCHEDULES, scheduled
from planner.schedules.schedule import Schedule
from planner.schedules.timing import Costs, StageSeconds, Timing, timed, uniform

#: Seconds of a forward and of the two halves of a backward, that are not multiples of each other.
F, G, W = 0.0137, 0.0151, 0.0119
SIZES = [(1, 1), (1, 5), (2, 2), (3, 7), (4, 4), (4, 8), (8, 24)]


def step_of(schedule: Schedule, f: float = F, i: float = G, w: float = W) -> Timing:
    return timed(schedule, Costs(stages=uniform(schedule.num_stages, f, i, w)))


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(("p", "m"), [*SIZES, (4, 2), (5, 3)])
@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_gpipe_and_1f1b_take_m_and_p_less_one(name: str, p: int, m: int) -> None:
    timing = step_of(scheduled(name, p, m))
    assert timing.step_time == near((m + p - 1) * (F + G + W))
    assert timing.bubble_share == near((p - 1) / (m + p - 1)) or p == 1
    assert timing.busy == near((m * (F + G + W),) * p)


@pytest.mark.parametrize("v", [2, 3, 4])
@pytest.mark.parametrize(("p", "m"), [(p, m) for p, m in SIZES if m % p == 0])
def test_interleaving_divides_the_bubble_by_the_chunks(p: int, m: int, v: int) -> None:
    timing = step_of(scheduled("interleaved", p, m, v), F / v, G / v, W / v)
    ideal = m * (F + G + W)
    assert timing.step_time == near(ideal + (p - 1) * (F + G + W) / v)


@pytest.mark.parametrize(("p", "m"), [(p, m) for p, m in SIZES if m >= p])
def test_zb_h1_fills_the_bubble_with_weight_gradients(p: int, m: int) -> None:
    """The bubble is (p-1)(F + I - W), a third of 1F1B's if the three are equal."""
    equal = step_of(scheduled("zbh1", p, m), F, F, F)
    assert equal.step_time == near(m * 3 * F + (p - 1) * F)
    timing = step_of(scheduled("zbh1", p, m), F, G, W)
    assert timing.step_time == near(m * (F + G + W) + (p - 1) * (F + G - W))


@pytest.mark.parametrize(("p", "m"), [(p, m) for p, m in SIZES if m >= 2 * p])
def test_zbv_has_no_bubble_but_the_way_down(p: int, m: int) -> None:
    """With equal F, I and W a place waits only for the first microbatch to reach it."""
    timing = step_of(scheduled("zbv", p, m), F, F, F)
    assert timing.step_time == near(6 * m * F + (p - 1) * F)


def test_unequal_stages_of_gpipe() -> None:
    """Sum over stages of F + B, and for each further microbatch the slowest F and the slowest B."""
    draw = random.Random(3)
    for _ in range(20):
        p, m = draw.randint(1, 6), draw.randint(1, 9)
        stages = tuple(
            StageSeconds(forward=draw.random(), backward=draw.random()) for _ in range(p)
        )
        slowest = max(s.forward for s in stages) + max(s.backward for s in stages)
        total = sum(s.forward + s.backward for s in stages)
        timing = timed(scheduled("gpipe", p, m), Costs(stages=stages))
        assert timing.step_time == near(total + (m - 1) * slowest)


def test_transfers_that_overlap_are_paid_once_each_way() -> None:
    p, m, c = 4, 8, 0.003
    chain = {(u, v): c for u in range(p) for v in range(p) if abs(u - v) == 1}
    schedule = scheduled("gpipe", p, m)
    stages = uniform(p, F, G, W)
    timing = timed(schedule, Costs(stages=stages, transfers=chain))
    assert timing.step_time == near((m + p - 1) * (F + G + W) + 2 * (p - 1) * c)
    blocking = timed(schedule, Costs(stages=stages, transfers=chain, overlapped=False))
    assert blocking.step_time == near(
        (m + p - 1) * (F + G + W + 2 * c) - 2 * m * c + 2 * (m - 1) * c
    )


def test_messages_longer_than_the_work_queue_in_their_channel() -> None:
    c = 10.0
    timing = timed(
        scheduled("gpipe", 2, 5),
        Costs(stages=uniform(2, 1.0, 1.0, 1.0), transfers={(0, 1): c}),
    )
    assert timing.starts[1][:5] == tuple(1.0 + c * k for k in range(1, 6))


def test_what_runs_before_and_after_the_actions() -> None:
    stages = uniform(2, 1.0, 1.0, 1.0)
    costs = Costs(stages=stages, before=(0.0, 0.5), after=(0.25, 4.0))
    schedule = scheduled("1f1b", 2, 3)
    assert timed(schedule, costs).step_time == near(max(12.0 + 0.25, 10.0 + 4.0))
    together = Costs(stages=stages, after=(0.25, 4.0), together=True)
    timing = timed(schedule, together)
    assert timing.step_time == near(16.0)
    assert timing.bubbles == near((16.0 - 9.25, 16.0 - 13.0))


def test_no_step_is_shorter_than_its_busiest_place_or_its_longest_path() -> None:
    draw = random.Random(7)
    for name, kind in SCHEDULES.items():
        for p, m in ((2, 4), (3, 6), (4, 8)):
            schedule = scheduled(name, p, m, kind.chunks or 2)
            stages = tuple(
                StageSeconds(forward=f, backward=i + w, input=i, weight=w)
                for f, i, w in (
                    (draw.random(), draw.random(), draw.random())
                    for _ in range(schedule.num_stages)
                )
            )
            timing = timed(schedule, Costs(stages=stages))
            path = sum(s.forward + (s.input if kind.in_two else s.backward) for s in stages)
            if name != "dualpipev":  # mixes whole and halved backwards
                assert timing.step_time >= path - 1e-12
            assert timing.step_time >= max(timing.busy) - 1e-12
            for starts, ends in zip(timing.starts, timing.ends, strict=True):
                assert all(e <= s for e, s in zip(ends, starts[1:], strict=False))


def test_places_like_devices_cost_nothing_beyond_their_actions() -> None:
    """10^5 actions: 64 places, 780 microbatches; linear in actions, so a slip into a square of them
    would not end."""
    schedule = scheduled("1f1b", 64, 780)
    assert sum(map(len, schedule.orders)) == 99840
    assert step_of(schedule).step_time == near((780 + 63) * (F + G + W))


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_microbatches_in_flight(p: int, m: int) -> None:
    def most(name: str, chunks: int | None = None) -> list[int]:
        return [max(row) for row in microbatches_in_flight(scheduled(name, p, m, chunks))]

    assert most("gpipe") == [m] * p
    assert most("1f1b") == [min(m, p - r) for r in range(p)]
    if m % p == 0:
        for v in (2, 3):
            expected = [min(m * v, v * p + p - 1 - 2 * r) for r in range(p)]
            assert most("interleaved", v) == expected
    if m >= 2 * p:
        assert most("zbh1") == [p] * p
        assert most("zbv") == [2 * p] * p


def test_microbatches_in_flight_as_torch_was_measured() -> None:
    """Live activations of torch's own schedules, 4 ranks, 8 microbatches, 2 stages a rank."""
    most = {
        name: [max(row) for row in microbatches_in_flight(scheduled(name, 4, 8, 2))]
        for name in ("interleaved-zb", "interleaved", "zbv", "dualpipev")
    }
    assert most["interleaved"] == [11, 9, 7, 5]
    assert most["interleaved-zb"] == [8] * 4
    assert most["zbv"] == [8] * 4
    assert most["dualpipev"] == [9] * 4


def test_bytes_between_the_halves_of_a_backward() -> None:
    schedule = read_csv("0F0,0F1,0I0,0I1,0W0,0W1\n", "mine")
    assert held(schedule, [Kept(10.0, 4.0)]) == ((10.0, 20.0, 20.0, 14.0, 8.0, 4.0),)
    assert held(schedule, [Kept(10.0, 12.0)]) == ((10.0, 20.0, 22.0, 24.0, 24.0, 12.0),)
    assert peaks(schedule, [Kept(10.0, 12.0)]) == (24.0,)
