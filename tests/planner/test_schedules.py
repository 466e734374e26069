"""Schedules as data: their sizes, their names, CSV, what cannot run, sends and receives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cost_models.errors import BadValue, UnknownName
from planner.program.actions import Action, parse_actions
from planner.schedules.check_schedule import checked, schedule_faults
from planner.schedules.csv_text import load_schedule, read_csv, show_csv
from planner.schedules.exchanges import Message, exchanges
from planner.schedules.flow import Flow, chain
from planner.schedules.registry import SCHEDULES, scheduled
from planner.schedules.schedule import Schedule
from tests.planner.rendezvous import stuck


def every_schedule(places: int = 5, microbatches: int = 13) -> Iterator[Schedule]:
    """Every schedule that has a name, for all numbers that it can have up to these."""
    for name, kind in SCHEDULES.items():
        for p in range(1, places + 1):
            for m in range(1, microbatches + 1):
                for chunks in (kind.chunks,) if kind.chunks else (2, 3):
                    if not kind.misfit(p, m):
                        yield scheduled(name, p, m, chunks)


def test_every_named_schedule_runs_every_action_once_and_does_not_deadlock() -> None:
    faults = {
        (s.name, s.num_places, s.num_stages, s.microbatches): schedule_faults(s)
        for s in every_schedule()
    }
    assert len(faults) > 400
    assert {key: lines for key, lines in faults.items() if lines} == {}


def test_every_schedule_is_its_csv() -> None:
    for schedule in every_schedule(3, 7):
        assert read_csv(show_csv(schedule), schedule.name) == schedule


def test_a_csv_file_has_empty_cells_and_pairs_that_torch_overlaps(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("0F0,0F1,,,0B0,0B1\r\n,1F0,1B0,(1F1;1B1)OVERLAP_F_B\r\n")
    schedule = load_schedule(file)
    assert schedule.name == "mine"
    assert schedule.orders[1] == parse_actions("1F0 1B0 1F1 1B1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0X0\n", "row 1, column 2: '0X0' is not of the bodies F, B, I, W: sends, receives"),
        ("0F0,0B0\n1F0,1SEND_B0,1B0", "row 2, column 2: '1SEND_B0' is not of the bodies"),
        ("0F0,0B\n", "row 1, column 2: '0B' is no action: write stage, body (F, B, I, W) and"),
        ("0F0,,-1B0\n", "row 1, column 3: '-1B0' is no action"),
        ("0F0,0B0\n\n1F0,1B0\n", "row 2 has no action: every pipeline rank runs a stage"),
        ("", "the file has no row"),
        ("0F0,0B0\n2F0,2B0\n", "stage 1 of 3 is in no row"),
        ("0F0,0B0,1B0\n1F0\n", "1B0 is in the order of place 0, its stage is at place 1"),
        ("0F0,0F1,0B0\n", "stage 0 runs F for microbatch 1: it must run F and B, or F, I and W"),
        ("0F0,0F0,0B0\n", "0F0 runs 2 times"),
        ("0F0 0B0\n", "row 1, column 1: '0F0 0B0' is no action"),
        ("0F0,0F2,0B0,0B2\n", "stage 0 runs nothing for microbatch 1"),
        ("0F0,0W0,0I0\n", "0W0 runs before 0I0"),
        ("0B0,0F0\n", "0B0 runs before 0F0"),
        (
            "0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0\n",
            "deadlock: 0B0 (place 0) waits for 1B0; 1F1 (place 1) waits for 0F1",
        ),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(BadValue) as error:
        load_schedule(file)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match=r"schedule file '.*none.csv' cannot be read"):
        load_schedule(tmp_path / "none.csv")


def test_faults_of_a_schedule_made_by_hand() -> None:
    good = scheduled("1f1b", 2, 2)
    orders = (good.orders[0], (*good.orders[1], Action("F", 2, 1), Action("Q", 0, 5)))
    faults = schedule_faults(replace(good, orders=orders))
    assert "1F2 is of microbatch 2 of 2" in faults
    assert "5Q0 is none of the bodies F, B, I, W (place 1)" in faults


@pytest.mark.parametrize(
    ("name", "places", "microbatches", "chunks", "message"),
    [
        ("1f1b", 4, 8, 2, "schedule '1f1b' has 1 stage a rank, got 2: use 1 or 'interleaved'"),
        ("zbv", 4, 8, 3, "schedule 'zbv' has 2 stages a rank, got 3: use 2"),
        ("interleaved", 4, 8, 1, "needs at least 2 stages a rank, got 1: use 2, or '1f1b'"),
        ("interleaved-zb", 4, 8, 1, "needs at least 2 stages a rank, got 1: use 2, or 'zbh1'"),
        (
            "interleaved",
            4,
            9,
            2,
            "schedule 'interleaved' on 4 pipeline ranks needs microbatches in 2 equal rounds, got "
            "9: use 8 or 10",
        ),
        ("dualpipev", 4, 7, 2, "needs at least 2 microbatches a rank, 8, got 7"),
        ("gpipe", 4, 0, None, "schedule 'gpipe' needs at least 1 of microbatches, got 0"),
        ("gpipe", 0, 4, None, "schedule 'gpipe' needs at least 1 of pipeline ranks, got 0"),
    ],
)
def test_a_schedule_says_what_it_cannot_have(
    name: str, places: int, microbatches: int, chunks: int | None, message: str
) -> None:
    with pytest.raises(BadValue) as error:
        scheduled(name, places, microbatches, chunks)
    assert message in str(error.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        UnknownName, match=r"unknown schedule '1f2b': did you mean '1f1b'\? .*found"
    ):
        scheduled("1f2b", 2, 2)


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("rendezvous", [False, True])
def test_sends_and_receives_never_block_each_other(ahead: int, rendezvous: bool) -> None:
    """Each place run by the rules of `exchanges`, a message leaving only in the order of its
    channel and to a receive that is posted; with rendezvous a place stops until its sends have
    arrived."""
    for schedule in every_schedule(4, 9):
        assert stuck(exchanges(schedule, ahead=ahead), rendezvous) == [], (
            schedule.name,
            schedule.places,
            schedule.microbatches,
        )


def test_skips_and_masks_do_not_block_either() -> None:
    """Values that go straight to a later stage, some without a gradient."""
    for schedule in every_schedule(4, 6):
        n = schedule.num_stages
        flow = Flow(
            forward=(
                *chain(n).forward,
                *((0, s) for s in range(2, n)),
                *((1, s) for s in range(3, n)),
            ),
            backward=(*chain(n).backward, *((s, 0) for s in range(2, n))),
        )
        assert schedule_faults(schedule, flow) == []
        assert stuck(exchanges(schedule, flow), rendezvous=True) == []


def test_a_receive_out_of_order_posts_those_before_it() -> None:
    """Place 1 reads microbatch 1 first: its receive can only be matched after that of 0."""
    text = "0F0,0F1,0F2,0F3,0B1,0B0,0B2,0B3\n1F1,1B1,1F0,1B0,1F2,1B2,1F3,1B3\n"
    _, second = exchanges(read_csv(text, "swapped"), ahead=0)
    assert [" ".join(map(str, e.posts)) for e in second] == [
        "0F0>1F0 0F1>1F1 0F2>1F2", "0F3>1F3", "", "", "", "", "", "",
    ]  # fmt: skip


def test_the_exchanges_of_one_forward_one_backward() -> None:
    first, second = exchanges(scheduled("1f1b", 2, 3))
    assert [
        (str(e.action), *(list(map(str, m)) for m in (e.posts, e.waits, e.sends))) for e in second
    ] == [
        ("1F0", ["0F0>1F0", "0F1>1F1"], ["0F0>1F0"], []),
        ("1B0", ["0F2>1F2"], [], ["1B0>0B0"]),
        ("1F1", [], ["0F1>1F1"], []),
        ("1B1", [], [], ["1B1>0B1"]),
        ("1F2", [], ["0F2>1F2"], []),
        ("1B2", [], [], ["1B2>0B2"]),
    ]
    assert [str(m) for e in first for m in e.posts] == ["1B0>0B0", "1B1>0B1", "1B2>0B2"]


def test_stages_of_one_place_send_each_other_nothing() -> None:
    for order in exchanges(scheduled("zbv", 2, 4)):
        for exchange in order:
            for message in (*exchange.posts, *exchange.waits, *exchange.sends):
                assert {message.source.stage, message.target.stage} != {1, 2}


def test_a_channel_has_few_buffers() -> None:
    for schedule in (scheduled("1f1b", 4, 9), scheduled("gpipe", 3, 5), scheduled("zbh1", 4, 9)):
        for ahead in (0, 1, 2):
            for order in exchanges(schedule, ahead=ahead):
                buffers: dict[tuple[int, bool], int] = defaultdict(int)
                for exchange in order:
                    for message in exchange.posts:
                        buffers[channel_of(message)] += 1
                    assert max(buffers.values(), default=0) <= max(ahead, 1) + 1
                    for message in exchange.waits:
                        buffers[channel_of(message)] -= 1


def channel_of(message: Message) -> tuple[int, bool]:
    return message.source.stage, message.source.stage < message.target.stage


def test_checked_returns_the_schedule() -> None:
    schedule = scheduled("gpipe", 2, 2)
    assert checked(schedule) is schedule
