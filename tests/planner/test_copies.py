"""What is copied around a collective: counted while the executor's own packing and unpacking
runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_plans import ask_for, planned
from torch.utils._python_dispatch import TorchDispatchMode

from planner.predict.predict import PACKED, UNPACKED, simulate_program
from planner.program.copies import Copies, copies_of
from planner.program.program import Communicate
from runtime.collectives import compile_collective

RANKS = 2


class _Copied(TorchDispatchMode):
    """Counts the elements that ops write to new memory, and the ops."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.kernels = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.clone.default, torch.ops.aten.cat.default):
            self.elements, self.kernels = self.elements + out.numel(), self.kernels + 1
        return out


def counted(call: Callable[[], Any]) -> tuple[int, int]:
    with _Copied() as mode:
        call()
    return mode.elements, mode.kernels


def run(
    kind: str, shapes: list[tuple[int, ...]], gather: int | None, split: int | None, *, freed: bool
) -> Copies:
    """What the executor copies of values of these flat shapes."""
    values = [torch.randn(shape) for shape in shapes]
    sources = tuple(range(len(shapes)))
    after = [
        whole(piece(shape, split), gather) if kind != "all_reduce" else shape for shape in shapes
    ]
    collective = compile_collective(
        Communicate(
            id="c",
            kind=kind,
            axes=(0,),
            sources=sources,
            results=tuple(s + 10 for s in sources),
            expanded=tuple(shapes),
            shapes=tuple(after),
            dtypes=("float32",) * len(shapes),
            gather=gather,
            split=split,
            phase="forward",
            frees=sources if freed else (),
        ),
        None,
        RANKS,
        0,
    )
    if kind == "slice":
        packed = counted(lambda: collective.finish(collective.start(*values)))
        return Copies(packed=packed[0], num_packed=packed[1])
    packed = counted(lambda: (collective.pack if split is None else collective.pack_blocks)(values))
    if gather is None:
        return Copies(packed=packed[0], num_packed=packed[1])
    sent = [piece(shape, split) for shape in shapes]
    rows = torch.randn(RANKS, sum(map(math.prod, sent)))
    arrived = counted(lambda: collective.unpack_blocks(rows, sent))
    return Copies(
        packed=packed[0], num_packed=packed[1], unpacked=arrived[0], num_unpacked=arrived[1]
    )


def piece(shape: tuple[int, ...], split: int | None) -> tuple[int, ...]:
    return shape if split is None else (*shape[:split], shape[split] // RANKS, *shape[split + 1 :])


def whole(shape: tuple[int, ...], gather: int | None) -> tuple[int, ...]:
    return (
        shape if gather is None else (*shape[:gather], shape[gather] * RANKS, *shape[gather + 1 :])
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_copies_are_those_of_the_executor(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["slice", "all_gather", "reduce_scatter", "all_to_all"]))
    dims = data.draw(st.integers(1, 3))
    number = 1 if kind == "slice" else data.draw(st.integers(1, 3))
    split = data.draw(st.integers(0, dims - 1)) if kind != "all_gather" else None
    gather = data.draw(st.integers(0, dims - 1)) if kind in ("all_gather", "all_to_all") else None
    if kind == "all_to_all" and gather == split:
        return
    sizes = st.tuples(
        *[
            st.sampled_from([1, 2, 3]) if dim != split else st.sampled_from([2, 4])
            for dim in range(dims)
        ]
    )
    shapes = data.draw(st.lists(sizes, min_size=number, max_size=number))
    freed = data.draw(st.booleans())
    after = [math.prod(whole(piece(shape, split), gather)) for shape in shapes]
    told = copies_of(
        kind, ranks=RANKS, before=shapes, after=after, gather=gather, split=split, overwritten=freed
    )
    ran = run(kind, shapes, gather, split, freed=freed)
    assert (ran.packed, ran.unpacked) <= (told.packed, told.unpacked)
    # A dim of one element, or of one per rank, may be a view all the same.
    if all(n > RANKS for shape in shapes for n in shape):
        assert ran == told


def test_packing_and_slices_take_their_time() -> None:
    """ZeRO-1: gradients are packed in buckets, and rows of what is gathered are taken apart, on
    the compute stream."""
    plan = planned(ask_for("gpt", width=64, batch=64, dtype="float32"), "dp=4", ("*=zero1",))
    messages = [i for i in plan.program.instructions if isinstance(i, Communicate)]
    events = {event.id: event for event in simulate_program(plan.program, plan.cluster).events}
    for message in messages:
        for suffix, seconds in ((PACKED, message.packing), (UNPACKED, message.unpacking)):
            assert (message.id + suffix in events) == (seconds > 0)
            if seconds:
                assert events[message.id + suffix].stream == "compute"
    buckets = [m for m in messages if m.phase == "update" and len(m.sources) > 1]
    assert buckets
    bandwidth = plan.cluster.device.memory_bandwidth
    assert any(message.unpacking for message in messages)
    for bucket in buckets:
        sent = sum(map(math.prod, bucket.expanded)) * 4
        assert bucket.packing >= 2 * sent / bandwidth


@pytest.mark.parametrize(("split", "freed", "copied"), [(0, False, 0), (1, False, 6), (0, True, 6)])
def test_a_slice_is_free_where_it_is_a_look(split: int, freed: bool, copied: int) -> None:
    copies = copies_of(
        "slice",
        ranks=2,
        before=[(4, 3)] if split == 0 else [(3, 4)],
        after=[6],
        gather=None,
        split=split,
        overwritten=freed,
    )
    assert copies.packed == copied
