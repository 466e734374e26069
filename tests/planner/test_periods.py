"""Of many microbatches few are simulated: the rest is what it would be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_plans import ask_for, planned

from cost_models.breakdown import breakdown
from cost_models.cluster import load_cluster
from cost_models.timeline import Event
from planner.predict.footprint import footprint
from planner.predict.periods import Simulated, parts_of, simulated, whole
from planner.predict.predict import predict, simulate_program
from planner.program.actions import Action
from planner.program.program import Program

#: (model, ranks, hardware, mesh, pins, numbers of microbatches). On CPU ranks a step waits for its
#: messages; on GPUs they run beside compute and across the ends of microbatches, and the host is
#: ahead of the device.
PLANS = [
    ("gpt", 4, "dgx-h100", "dp=2,tp=2", ("*=zero1", "*=tensor"), (8,)),
    ("mlp", 4, "dgx-h100", "dp=4", ("*=zero3",), (2, 5, 8)),
    ("lstm", 4, "dgx-a100", "dp=4", ("*=zero2",), (5, 8)),
    ("mlp", 2, "cpu", "dp=2", ("*=ddp",), (2, 6)),
]


@pytest.fixture(scope="module", params=PLANS, ids=lambda plan: f"{plan[0]} {plan[3]}")
def plans(request: pytest.FixtureRequest) -> list[tuple[Program, Simulated, Simulated]]:
    """Programs, each simulated in part and whole; with larger kernels, too, so that the host is
    not what a step waits for."""
    model, ranks, hardware, mesh, pins, numbers = request.param
    cluster = load_cluster(hardware, num_devices=ranks)
    out = []
    for m in numbers:
        ask = ask_for(model, ranks, batch=120, microbatches=m)
        program = planned(ask, mesh, pins, cluster=cluster).program
        for times in (1.0, 30.0):
            slow = slower(program, times)
            out.append(
                (slow, simulated(slow, cluster), simulated(slow, cluster, every_action=True))
            )
    return out


def slower(program: Program, times: float) -> Program:
    """The program with every instruction longer."""
    bodies = {
        name: tuple(replace(one, time=one.time * times) for one in body)
        for name, body in program.bodies.items()
    }
    return replace(program, bodies=bodies)


def test_the_step_is_that_of_all_microbatches(
    plans: list[tuple[Program, Simulated, Simulated]],
) -> None:
    assert any(part.left_out for _, part, _ in plans)
    assert all(part.actions[part.after].body != "TOTALS" for _, part, _ in plans)
    for _, part, full in plans:
        assert full.left_out == 0
        assert part.step_time == pytest.approx(full.step_time, rel=1e-12)
        parts, wanted = parts_of(part), breakdown(full.timeline, 0)
        for name in ("compute", "exposed_communication", "idle"):
            close = pytest.approx(getattr(wanted, name), abs=1e-12 * full.step_time)
            assert getattr(parts, name) == close


def test_every_event_is_where_it_would_be(
    plans: list[tuple[Program, Simulated, Simulated]],
) -> None:
    def by_name(event: Event) -> tuple[int, str]:
        return event.microbatch, event.id

    for program, part, full in plans:
        found, wanted = (sorted(whole(one).events, key=by_name) for one in (part, full))
        assert list(map(by_name, found)) == list(map(by_name, wanted))
        close = pytest.approx([e.end for e in wanted], abs=1e-12 * full.step_time)
        assert [event.end for event in found] == close
        assert {e.microbatch for e in found} == set(range(program.microbatches))


def test_memory_is_walked_once_for_like_microbatches(
    plans: list[tuple[Program, Simulated, Simulated]],
) -> None:
    """It is that of a program in which every action has a body of its own."""
    for program, _, _ in plans:
        apart = replace(
            program,
            bodies={f"{a.body}{a.microbatch}": program.bodies[a.body] for a in program.actions},
            actions=tuple(Action(f"{a.body}{a.microbatch}", a.microbatch) for a in program.actions),
        )
        assert footprint(apart) == footprint(program)
        assert len(footprint(program).during) == len(program.instructions)


def test_more_microbatches_hold_less_and_their_timeline_says_so() -> None:
    cluster = load_cluster("dgx-h100", num_devices=2)
    held = []
    for m in (2, 8):
        ask = ask_for("lstm", 2, batch=32, microbatches=m)
        program = planned(ask, "dp=2", ("*=ddp",), cluster=cluster).program
        timeline, found = simulate_program(program, cluster), predict(program, cluster)
        assert timeline.peak_memory == found.total_memory_bytes
        assert timeline.step_time == found.step_time_s
        held.append(found.total_memory_bytes)
    assert held[1] < held[0]
