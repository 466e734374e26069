"""The simulator: streams, the host, overlap, rendezvous and memory by hand; bounds by property."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.errors import BadValue
from cost_models.simulator import Task, breakdown, simulate
from cost_models.timeline import Timeline


def task(
    name: str, duration: float, *deps: str, stream: str = "compute", device: int = 0, **more: object
) -> Task:
    fields = {
        "kind": "gemm",
        "phase": "forward",
        "deps": deps,
        "stream": stream,
        "device": device,
        **more,
    }
    return Task(id=name, duration=duration, **fields)  # type: ignore[arg-type]


def run(
    *tasks: Task, num_devices: int = 1, overlap: float = 1.0, initial_memory: int = 0
) -> Timeline:
    return simulate(tasks, num_devices=num_devices, initial_memory=initial_memory, overlap=overlap)


def spans(timeline: Timeline) -> dict[str, tuple[float, float]]:
    return {f"{event.id}@{event.device}": (event.start, event.end) for event in timeline.events}


def test_a_stream_is_in_order() -> None:
    timeline = run(task("a", 1), task("b", 2))
    assert spans(timeline) == {"a@0": (0, 1), "b@0": (1, 3)}
    assert timeline.step_time == 3


def test_nothing_takes_no_time() -> None:
    assert run().step_time == 0


def test_communication_runs_beside_compute_and_is_waited_for() -> None:
    timeline = run(
        task("a", 1), task("c", 5, "a", stream="communication"), task("b", 2), task("d", 1, "c")
    )
    assert spans(timeline) == {"a@0": (0, 1), "b@0": (1, 3), "c@0": (1, 6), "d@0": (6, 7)}


@pytest.mark.parametrize(
    ("overlap", "expected"), [(1.0, 5.0), (0.0, 8.0), (0.5, 6.5), (0.81, 5.57)]
)
def test_two_rates(overlap: float, expected: float) -> None:
    """T = C + M - overlap * min(C, M) with C = 3, M = 5."""
    timeline = run(task("c", 3), task("m", 5, stream="communication"), overlap=overlap)
    assert timeline.step_time == pytest.approx(expected)


def test_a_late_start_slows_only_while_both_run() -> None:
    """overlap 0: compute alone for 2 s, both at half rate for 2 s, communication ends after 1 s
    of work at t = 4."""
    timeline = run(
        task("h", 2, stream="host"),
        task("m", 1, "h", stream="communication"),
        task("c", 3),
        overlap=0.0,
    )
    assert spans(timeline)["m@0"] == (2, pytest.approx(4))
    assert spans(timeline)["c@0"] == (2, pytest.approx(6))


@pytest.mark.parametrize(
    ("links", "channels", "ends"),
    [
        (("inside", "inside"), ("tp", "tp"), (3.0, 5.0)),  # one communicator: one after the other
        (
            ("inside", "inside"),
            ("tp", "dp"),
            (5.0, 4.0),
        ),  # one class of links: half the rate each, then one alone
        (("inside", "between"), ("tp", "dp"), (3.0, 2.0)),  # links of their own
    ],
)
def test_communicators_have_streams_of_their_own_and_share_links(
    links: tuple[str, str], channels: tuple[str, str], ends: tuple[float, float]
) -> None:
    timeline = run(
        task("a", 3, stream="communication", channel=channels[0], link=links[0]),
        task("b", 2, stream="communication", channel=channels[1], link=links[1]),
    )
    assert (spans(timeline)["a@0"][1], spans(timeline)["b@0"][1]) == ends
    assert {event.lane for event in timeline.events} == {
        f"communication {channel}" for channel in channels
    }


def test_compute_is_slowed_once_whatever_number_of_communicators_run() -> None:
    """overlap 0: compute at half rate; the two on one class of links at a quarter each."""
    timeline = run(
        task("c", 3),
        *(
            task(name, 1.5, stream="communication", channel=name, link="inside")
            for name in ("tp", "dp")
        ),
        overlap=0.0,
    )
    assert spans(timeline) == {name: (0, pytest.approx(6)) for name in ("c@0", "tp@0", "dp@0")}


def test_the_host_bounds_small_kernels() -> None:
    timeline = run(*(task(f"k{i}", 1.0, host_duration=4.0) for i in range(5)))
    assert timeline.step_time == 5 * 4 + 1
    assert spans(timeline)["k0@0"] == (4, 5)


def test_large_kernels_hide_the_host() -> None:
    assert run(*(task(f"k{i}", 10.0, host_duration=4.0) for i in range(5))).step_time == 4 + 5 * 10


def test_the_host_runs_ahead_across_streams_in_program_order() -> None:
    timeline = run(
        task("a", 1, host_duration=1),
        task("b", 1, stream="communication", host_duration=1),
        task("c", 1, host_duration=1),
    )
    assert spans(timeline) == {"a@0": (1, 2), "b@0": (2, 3), "c@0": (3, 4)}


def test_a_host_task_holds_the_queue_until_its_inputs_are_there() -> None:
    timeline = run(
        task("a", 5, host_duration=1),
        task("sync", 2, "a", stream="host"),
        task("b", 1, host_duration=1),
    )
    assert spans(timeline) == {"a@0": (1, 6), "sync@0": (6, 8), "b@0": (9, 10)}


def test_a_collective_starts_together_and_ends_together() -> None:
    timeline = run(
        task("a", 1),
        task("a", 3, device=1),
        *(task("r", 2, "a", stream="communication", device=d, group=(0, 1)) for d in (0, 1)),
        num_devices=2,
    )
    assert spans(timeline) == {"a@0": (0, 1), "a@1": (0, 3), "r@0": (3, 5), "r@1": (3, 5)}


def test_a_collective_is_slowed_by_compute_on_any_member() -> None:
    timeline = run(
        *(task("r", 2, stream="communication", device=d, group=(0, 1)) for d in (0, 1)),
        task("c", 1, device=1),
        num_devices=2,
        overlap=0.0,
    )
    assert spans(timeline) == {
        "c@1": (0, 2),
        "r@0": (0, pytest.approx(3)),
        "r@1": (0, pytest.approx(3)),
    }


def test_memory_is_held_from_start_to_the_freeing_end() -> None:
    timeline = run(
        task("a", 1, allocates=10),
        task("b", 1, allocates=5, frees=10),
        task("c", 1, frees=5),
        initial_memory=100,
    )
    assert [(sample.time, sample.nbytes) for sample in timeline.memory] == [
        (0, 100),
        (0, 110),
        (1, 115),
        (2, 105),
        (3, 100),
    ]
    assert timeline.peak_memory == 115


def test_breakdown_by_hand() -> None:
    """Compute 0-1 and 4-5, communication 0.5-3, nothing 3-4."""
    timeline = run(
        task("h", 0.5, stream="host"),
        task("m", 2.5, "h", stream="communication"),
        task("w", 3.5, stream="host"),
        task("c", 1, "w"),
    )
    parts = breakdown(timeline, 0)
    assert (parts.compute, parts.exposed_communication, parts.idle) == (
        pytest.approx(1),
        pytest.approx(2.5),
        pytest.approx(1.5),
    )
    assert parts.total == pytest.approx(timeline.step_time, abs=1e-12)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            [task("a", 1, "never")],
            "1 tasks wait for tasks or devices that never arrive; the first is 'a'",
        ),
        ([task("a", 1, "b"), task("b", 1)], "the first is 'a'"),
        ([task("r", 1, group=(0, 1), stream="communication")], "the first is 'r'"),
        ([task("a", 1, device=2)], "task 'a' is on device 2, but there are 2 devices"),
    ],
)
def test_steps_that_cannot_end(tasks: list[Task], message: str) -> None:
    with pytest.raises(BadValue, match=message):
        run(*tasks, num_devices=2)


def test_bad_tasks() -> None:
    with pytest.raises(
        BadValue, match="unknown stream 'side', known: compute, communication, host"
    ):
        task("a", 1, stream="side")
    with pytest.raises(
        BadValue, match="stream 'compute' has neither channel nor link, got 'tp', ''"
    ):
        task("a", 1, channel="tp")
    with pytest.raises(BadValue, match="durations must be >= 0, got -1"):
        task("a", -1)
    with pytest.raises(BadValue, match=r"task 'a' on device 0 is not in its own group \(1, 2\)"):
        task("a", 1, group=(1, 2))
    with pytest.raises(BadValue, match="overlap must be between 0 and 1, got 2"):
        run(overlap=2)


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Task], int]:
    """The same program on one to three devices: kernels, collectives over all devices, and host
    work, with earlier deps."""
    num_devices = draw(st.integers(1, 3))
    count = draw(st.integers(1, 25))
    tasks = []
    for i in range(count):
        stream = draw(st.sampled_from(["compute", "compute", "communication", "host"]))
        deps = tuple(f"t{j}" for j in draw(st.sets(st.integers(0, i - 1), max_size=2))) if i else ()
        host = draw(st.sampled_from([0.0, 0.25, 1.0]))
        for device in range(num_devices):
            duration = draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))
            group = tuple(range(num_devices)) if stream == "communication" else ()
            tasks.append(
                task(
                    f"t{i}",
                    duration,
                    *deps,
                    stream=stream,
                    device=device,
                    host_duration=host,
                    group=group,
                    allocates=1,
                    frees=1,
                )
            )
    return tasks, num_devices


@settings(max_examples=120, deadline=None)
@given(programs(), st.sampled_from([0.0, 0.5, 1.0]))
def test_bounds(program: tuple[list[Task], int], overlap: float) -> None:
    tasks, num_devices = program
    timeline = run(*tasks, num_devices=num_devices, overlap=overlap)
    busy: dict[tuple[int, str], float] = defaultdict(float)
    path: dict[tuple[int, str], float] = {}
    for t in tasks:
        busy[t.device, t.stream] += t.duration
        path[t.device, t.id] = t.duration + max(
            (path[t.device, dep] for dep in t.deps), default=0.0
        )
    slack = 1e-9
    assert timeline.step_time >= max(busy.values()) - slack
    assert timeline.step_time >= max(path.values()) - slack
    assert timeline.step_time <= sum(t.duration + t.host_duration for t in tasks) + slack, (
        "never worse than one after the other"
    )
    assert len(timeline.events) == len(tasks)
    ends = {(event.device, event.id): event for event in timeline.events}
    for t in tasks:
        assert all(ends[t.device, t.id].start >= ends[t.device, dep].end - slack for dep in t.deps)
    for device in range(num_devices):
        parts = breakdown(timeline, device)
        assert parts.total == pytest.approx(timeline.step_time, abs=1e-12)
        assert min(parts.compute, parts.exposed_communication, parts.idle) >= -1e-12
        if overlap == 0.0:
            work = busy[device, "compute"] + (
                busy[device, "communication"] if num_devices == 1 else 0.0
            )
            assert parts.compute + parts.exposed_communication >= work - slack, (
                "one shared resource"
            )


@st.composite
def steps(draw: st.DrawFn) -> list[Task]:
    """One device: kernels and communications of three communicators over two classes of links,
    with earlier deps."""
    tasks = []
    for i in range(draw(st.integers(1, 20))):
        deps = tuple(f"t{j}" for j in draw(st.sets(st.integers(0, i - 1), max_size=2))) if i else ()
        channel = draw(st.sampled_from(["", "", "tp", "cp", "dp"]))
        more = {
            "stream": "communication",
            "channel": channel,
            "link": "between" if channel == "dp" else "inside",
        }
        tasks.append(
            task(
                f"t{i}",
                draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])),
                *deps,
                **(more if channel else {}),
            )
        )
    return tasks


@settings(max_examples=150, deadline=None)
@given(steps(), st.sampled_from([0.0, 0.3, 0.81, 1.0]))
def test_no_order_is_shorter_than_the_bound(tasks: list[Task], overlap: float) -> None:
    """T >= C + (1 - overlap) M for the communications of every class of links, and their streams
    and links do not do more than one second of work a second."""
    step = run(*tasks, overlap=overlap).step_time
    compute = sum(t.duration for t in tasks if t.stream == "compute")
    for link in ("inside", "between"):
        sent = sum(t.duration for t in tasks if t.link == link)
        assert step >= compute + (1 - overlap) * sent - 1e-9
        assert step >= sent - 1e-9


def test_ten_thousand_tasks() -> None:
    tasks = []
    for i in range(1250):
        for d in range(8):
            if i % 5:
                tasks.append(
                    task(
                        f"t{i}",
                        1e-5,
                        *((f"t{i - 2}",) if i > 1 else ()),
                        device=d,
                        host_duration=5e-6,
                        allocates=9,
                        frees=9,
                    )
                )
            else:
                tasks.append(
                    task(
                        f"t{i}",
                        2e-5,
                        stream="communication",
                        device=d,
                        host_duration=5e-6,
                        group=tuple(range(8)),
                    )
                )
    assert len(run(*tasks, num_devices=8, overlap=0.5).events) == 10_000
