"""The executor in one process: what it computes, frees, records, and overwrites only where it
may."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_programs import BATCH, HIDDEN, INPUTS, OUTPUTS, Builder, Split, make_workload, perceptron
from hypothesis import given
from hypothesis import strategies as st
from kinds import Kind, plan_of

from cost_models.errors import BadValue, RunFailed, UnknownName
from planner.graph.layout import REPLICATE, Layout, Mesh, SubShape
from planner.program.actions import STEP
from planner.program.program import Communicate, Compute, Program, Ref
from planner.torch_private.allocator import allocations
from planner.workload.ask import Ask
from planner.workload.ask import build as build_workload
from runtime.aliases import reusable_sources
from runtime.collectives import Pending
from runtime.executor import Executor, gather_parameters
from runtime.groups import group_size
from runtime.parameters import assemble, build, cut
from runtime.recorder import Recorder
from runtime.reference import reference_run
from runtime.verify import compare

ONE = Mesh(("dp",), (1,))
REPORTED = Path(__file__).parent.parent / "reported"


def one_rank() -> tuple[Program, Executor]:
    program = perceptron(Split(ONE, batch=(0,)))
    return program, Executor(program, build(make_workload, 0), keep_gradients=True)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_one_rank_trains_as_plain_torch(optimizer: str) -> None:
    program = perceptron(Split(ONE, batch=(0,)))
    workload = build(lambda: make_workload(optimizer), 3)
    executor = Executor(program, workload, keep_gradients=True)
    losses = [executor.step(workload.batch)]
    gradients = executor.gradients
    losses += [executor.step(workload.batch) for _ in range(2)]
    reference = reference_run(lambda: make_workload(optimizer), program, seed=3, num_steps=3)
    errors = compare(losses, gradients, gather_parameters(executor), reference)
    assert max(errors.loss_error, errors.gradient_error, errors.parameter_error) < 1e-12
    assert losses[2] < losses[0]


def test_verification_sees_a_wrong_gradient_and_a_nan() -> None:
    program, executor = one_rank()
    workload = build(make_workload, 0)
    losses = [executor.step(workload.batch)]
    reference = reference_run(make_workload, program, seed=0, num_steps=1)
    wrong = {
        name: g * (1.01 if name == "second.weight" else 1) for name, g in executor.gradients.items()
    }
    errors = compare(losses, wrong, gather_parameters(executor), reference)
    assert errors.worst_gradient == "second.weight"
    assert errors.gradient_error == pytest.approx(0.01)
    assert compare([float("nan")], {}, {}, reference).loss_error == float("inf")


def test_recorded_step_has_one_event_an_instruction_and_trains_the_same() -> None:
    program, executor = one_rank()
    _, other = one_rank()
    workload = build(make_workload, 0)
    timeline = executor.recorded_step(workload.batch)
    other.step(workload.batch)
    assert [event.id for event in timeline.events] == [i.id for i in program.instructions]
    assert all(0 <= e.start <= e.end <= timeline.step_time for e in timeline.events)
    assert {e.id: (e.kind, e.phase) for e in timeline.events} == {
        i.id: (i.kind, i.phase) for i in program.instructions
    }
    for name, shard in executor.parameter_shards().items():
        assert torch.equal(shard, other.parameter_shards()[name])


def test_recorded_memory_is_the_allocators() -> None:
    _, executor = one_rank()
    executor.keep_gradients = False
    workload = build(make_workload, 0)
    executor.step(workload.batch)
    timeline = executor.recorded_step(workload.batch)
    parameters = sum(p.nbytes for p in executor.parameter_shards().values())
    batch = (BATCH * INPUTS + BATCH * OUTPUTS) * 8
    adam = 2 * parameters + 2 * 4
    assert timeline.memory[0].nbytes == parameters + batch + adam
    assert timeline.memory[-1].nbytes == parameters + batch + adam
    assert (
        timeline.peak_memory == executor.peak_memory_bytes > timeline.memory[0].nbytes + parameters
    )


def test_allocations_are_those_of_all_threads() -> None:
    held = [torch.empty(1000)]
    with allocations(torch.device("cpu")) as found:
        held.append(torch.empty(500))
        thread = threading.Thread(target=held.append, args=(torch.empty(250),))
        thread.start()
        thread.join()
        thread = threading.Thread(target=lambda: held.pop(1))
        thread.start()
        thread.join()
        torch.empty(1)
    assert [nbytes - found.before for _, nbytes in found.samples] == [2000, 3000, 1004, 1000]
    assert sorted(found.samples) == found.samples


def test_allocations_within_an_op_are_seen() -> None:
    """Sorting along a strided dim takes copies that it gives back."""
    values = torch.randn(64, 64)
    with allocations(torch.device("cpu")) as found:
        torch.sort(values, 0)
    results = 64 * 64 * (4 + 8)
    assert max(nbytes for _, nbytes in found.samples) - found.before > results


def test_batch_of_another_shape_is_refused() -> None:
    _, executor = one_rank()
    with pytest.raises(
        BadValue, match=r"batch tensor 0 has shape \(3, 12\): the plan was made for \(8, 12\)"
    ):
        executor.step((torch.zeros(3, 12), torch.zeros(3, 4)))


def test_unknown_op_is_refused() -> None:
    program = perceptron(Split(ONE))
    assert isinstance(program.instructions[0], Compute)
    wrong = dataclasses.replace(program.instructions[0], op="shardwright.lstn")
    with pytest.raises(UnknownName, match=r"did you mean 'shardwright\.lstm'"):
        Executor(
            dataclasses.replace(program, bodies={STEP: (wrong, *program.instructions[1:])}),
            make_workload(),
        )


def test_failing_instruction_is_named() -> None:
    program = perceptron(Split(ONE))
    wrong = dataclasses.replace(program.instructions[1], args=(Ref(0), Ref(1)), path="first")
    broken = dataclasses.replace(
        program, bodies={STEP: (program.instructions[0], wrong, *program.instructions[2:])}
    )
    workload = make_workload()
    with pytest.raises(RunFailed, match=r"^rank 0: instruction c\d+ \(aten\.mm\.default, first\)"):
        Executor(broken, workload).step(workload.batch)


def test_a_collective_overwrites_only_what_nothing_else_reads() -> None:
    b = Builder(Mesh(("dp",), (2,)))
    x = b.value()
    alone = b.compute("aten.relu.default", Ref(x))
    b.communicate("all_reduce", (0,), [(alone, (4,))], [(4,)])
    shared = b.compute("aten.relu.default", Ref(x))
    view = b.compute("aten.view.default", Ref(shared), (2, 2))
    b.communicate("all_reduce", (0,), [(view, (2, 2))], [(2, 2)])
    b.loss = b.compute("aten.sum.default", Ref(shared))
    kept_view = b.compute("aten.view.default", Ref(x), (2, 2))
    b.communicate("all_reduce", (0,), [(kept_view, (2, 2))], [(2, 2)])
    program = b.finish([], [])
    program = dataclasses.replace(program, inputs=(perceptron(Split(ONE)).inputs[0],))
    assert list(reusable_sources(program, STEP).values()) == [[True], [False], [False]]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[SubShape, Layout, Mesh]:
    sizes = tuple(draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=3)))
    mesh = Mesh(tuple(f"a{i}" for i in range(len(sizes))), sizes)
    num_subdims = draw(st.integers(1, 4))
    layout = tuple(draw(st.integers(-1, num_subdims - 1)) for _ in sizes)
    flat = [draw(st.integers(1, 2)) for _ in range(num_subdims)]
    for size, placement in zip(sizes, layout, strict=True):
        if placement >= 0:
            flat[placement] *= size
    flat = [size + draw(st.integers(0, 5)) for size in flat]  # no shard is empty; not all are alike
    at = draw(st.integers(0, num_subdims))
    return tuple(dim for dim in (tuple(flat[:at]), tuple(flat[at:])) if dim), layout, mesh


@given(layouts())
def test_cut_then_assemble_is_the_identity(case: tuple[SubShape, Layout, Mesh]) -> None:
    subshape, layout, mesh = case
    shape = [torch.Size(dim).numel() for dim in subshape]
    full = torch.arange(torch.Size(shape).numel()).reshape(shape)
    pieces = [cut(full, subshape, layout, mesh, rank) for rank in range(mesh.num_devices)]
    assert torch.equal(assemble(pieces, subshape, layout, mesh), full)
    num_copies = 1
    for size, placement in zip(mesh.sizes, layout, strict=True):
        num_copies *= size if placement == REPLICATE else 1
    assert sum(piece.numel() for piece in pieces) == full.numel() * num_copies
    assert max(piece.numel() for piece in pieces) == pieces[0].numel()


def test_earlier_axis_is_the_outer_one() -> None:
    mesh = Mesh(("a", "b"), (2, 2))
    pieces = [cut(torch.arange(4), ((4,),), (0, 0), mesh, rank).item() for rank in range(4)]
    assert pieces == [0, 1, 2, 3]


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_position_on_axes_is_the_place_in_the_group(axes: tuple[int, ...]) -> None:
    mesh = Mesh(("a", "b", "c"), (2, 3, 2))
    for ranks in mesh.groups(axes):
        assert [mesh.position(axes, rank) for rank in ranks] == list(range(group_size(mesh, axes)))


def test_a_loss_that_is_a_parameter_is_told_as_it_was_in_the_step() -> None:
    """The optimizer writes to the parameter before the losses are read."""
    ask = Ask(
        model=f"{REPORTED / 'late.py'}:weighted",
        batch=None,
        seq=None,
        settings={},
        dtype="float64",
        num_devices=1,
    )
    plan = plan_of(ask, Kind(mesh="a=1"))
    workload = build(lambda: build_workload(ask), 0)
    executor = Executor(plan.program, workload)
    loss = executor.step(workload.batch)
    assert executor.reported["doubt"] == 0.5
    assert sum(executor.reported.values()) == pytest.approx(loss)


def test_a_message_that_nobody_reads_is_waited_for_and_freed() -> None:
    """Its own free stands with it: the result is there only when it has been waited for."""
    program = perceptron(Split(ONE, batch=(0,)))
    at, unread = 2, 999
    before = program.instructions[at - 1]
    assert isinstance(before, Compute) and before.op == "aten.mm.default"
    (read,) = before.results
    assert read is not None
    message = Communicate(
        id="unread",
        kind="all_reduce",
        axes=(0,),
        sources=(read,),
        results=(unread,),
        expanded=((BATCH, HIDDEN),),
        shapes=((BATCH, HIDDEN),),
        dtypes=("float64",),
        phase="forward",
        asynchronous=True,
        frees=(unread,),
    )
    more = dataclasses.replace(
        program,
        bodies={STEP: (*program.instructions[:at], message, *program.instructions[at:])},
    )
    workload = build(make_workload, 0)
    losses = [
        Executor(each, build(make_workload, 0)).step(workload.batch) for each in (program, more)
    ]
    assert losses[0] == losses[1]
    Executor(more, build(make_workload, 0)).recorded_step(workload.batch)


class Clock(Recorder):
    """A recorder of which every look at the clock is a second later."""

    seen = 0

    def now(self) -> float:
        self.seen += 1
        return float(self.seen)


class Work:
    """Work that somebody else does, and says so."""

    def get_future(self) -> Work:
        return self

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        self.done = call


def test_a_message_is_recorded_until_it_is_done() -> None:
    """By whoever works at it; through shared memory nobody does, and it is what its start and
    its end take."""
    program = perceptron(Split(ONE, batch=(0,)))
    work = Work()
    for pending, span in (
        (Pending(None, work), [2.0, 4.0]),
        (Pending(None, None), [4.0 - 1.0, 5.0]),
    ):
        clock = Clock({0: program}, 0, 0)
        clock.begin(0)
        clock.launched(0, pending)
        if pending.work is not None:
            work.done(None)
        clock.waiting(0, pending)
        pending.work = None  # as `finish` leaves it
        clock.waited(0)
        assert clock.spans[program.actions[0], 0] == span
