"""Memory over a program, of buffers under way, against what a person counts; on real ranks by
tests/test_uneven_numerics.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.graph.layout import Mesh
from planner.predict.footprint import CATEGORIES, footprint
from planner.predict.predict import memory_by_category
from planner.predict.transfers import shared_bytes
from planner.program.actions import STEP
from planner.program.copies import slice_copies
from planner.program.program import Communicate, Compute, Program, Update

#: Bytes of one value.
N = 1 << 20
SHAPE = (4, N // 16)


def made(value: int) -> Compute:
    return Compute(
        id=f"made{value}",
        op="aten.ones.default",
        args=(SHAPE,),
        results=(value,),
        shapes=(SHAPE,),
        dtypes=("float32",),
        kind="elementwise",
        phase="backward",
    )


def message(
    kind: str,
    sources: tuple[int, ...],
    results: tuple[int, ...],
    *,
    frees: tuple[int, ...] = (),
    dim: int = 0,
) -> Communicate:
    part = 4 if kind == "all_gather" else 1
    shape = {
        "all_reduce": SHAPE,
        "all_gather": (4 * part, N // 16),
        "reduce_scatter": (1, N // 16),
        "slice": (1, N // 16),
    }[kind]
    return Communicate(
        id=kind,
        kind=kind,
        axes=(0,),
        sources=sources,
        results=results,
        expanded=(SHAPE,) * len(sources),
        shapes=(shape,) * len(sources),
        dtypes=("float32",) * len(sources),
        gather=dim if kind == "all_gather" else None,
        split=dim if kind in ("reduce_scatter", "slice") else None,
        phase="update",
        asynchronous=kind != "slice",
        frees=frees,
    )


def program(
    *instructions: Compute | Communicate | Update, backend: str = "shared", result: int = N
) -> Program:
    written = [
        v for i in instructions if not isinstance(i, Update) for v in i.results if v is not None
    ]
    nbytes = {v: N if v < 10 else result for v in written}
    return Program(
        mesh=Mesh(("dp",), (4,)),
        bodies={STEP: instructions},
        parameters=(),
        inputs=(),
        loss=0,
        value_bytes=nbytes,
        initial_bytes={},
        backend=backend,
    )


def totals(one: Program) -> list[tuple[float, float]]:
    """In units of a value: what is held at the fullest moment of every instruction, and after
    it."""
    found = footprint(one)
    return [
        (sum(during) / N, sum(after) / N)
        for during, after in zip(found.during, found.after, strict=True)
    ]


@pytest.mark.parametrize("backend", ["shared", "gloo", "nccl"])
def test_a_bucket_is_packed_beside_its_sources_which_are_then_freed(backend: str) -> None:
    bucket = message("all_reduce", (0, 1), (10, 11), frees=(0, 1))
    one = program(
        made(0),
        made(1),
        bucket,
        made(2),
        Update(id="update", gradients=(10, 11), frees=(10, 11, 2)),
        backend=backend,
    )
    assert totals(one) == [(1, 1), (2, 2), (4, 2), (3, 3), (3, 0)]
    held = memory_by_category(one)
    assert held["gradients"] == 4 * N == sum(held.values())
    assert tuple(held) == CATEGORIES


def test_a_lone_value_that_nobody_reads_is_reduced_in_place() -> None:
    update = Update(id="update", gradients=(10,), frees=(10,))
    assert totals(program(made(0), message("all_reduce", (0,), (10,), frees=(0,)), update)) == [
        (1, 1),
        (1, 1),
        (1, 0),
    ]
    assert totals(program(made(0), message("all_reduce", (0,), (10,)), update)) == [
        (1, 1),
        (2, 2),
        (2, 1),
    ]


@pytest.mark.parametrize(
    ("backend", "dim", "started", "unpacked"),
    [
        ("shared", 0, 5, 5),
        ("gloo", 0, 5, 5),
        ("gloo", 1, 5, 9),
        ("shared", 1, 5, 9),
        ("nccl", 1, 5, 9),
    ],
)
def test_what_is_gathered_arrives_and_is_unpacked(
    backend: str, dim: int, started: float, unpacked: float
) -> None:
    """Four ranks' pieces: a view where they lie one after the other, else a copy beside the
    buffer."""
    update = Update(id="update", gradients=(10,), frees=(10,))
    one = program(
        made(0), message("all_gather", (0,), (10,), dim=dim), update, backend=backend, result=4 * N
    )
    assert [during for during, _ in totals(one)] == [1, started, unpacked]


@pytest.mark.parametrize(
    ("backend", "started", "reduced"), [("shared", 4, 0.5), ("gloo", 6, 2.5), ("nccl", 4.5, 2.5)]
)
def test_what_is_scattered_is_sent_in_blocks(backend: str, started: float, reduced: float) -> None:
    """Two values: their packed blocks, and on gloo as much that arrives, of which a quarter is
    left."""
    bucket = message("reduce_scatter", (0, 1), (10, 11), frees=(0, 1))
    one = program(
        made(0),
        made(1),
        bucket,
        Update(id="update", gradients=(10, 11)),
        backend=backend,
        result=N // 4,
    )
    found = totals(one)
    assert [during for during, _ in found][2:] == [started, max(reduced, found[2][1])]
    assert found[3][1] == 0.5


def test_a_slice_copies_what_does_not_lie_together() -> None:
    rows, columns = message("slice", (0,), (10,)), message("slice", (0,), (10,), dim=1)
    assert (slice_copies(rows), slice_copies(columns)) == (False, True)
    assert totals(program(made(0), rows, result=N // 4))[1] == (1, 1)
    assert totals(program(made(0), replace(columns, frees=(0,)), result=N // 4))[1] == (1.25, 0.25)


def test_what_ranks_share_to_send_through() -> None:
    """A row of its own for what is under way, one of each size for what is waited for at once;
    gloo and NCCL have none."""
    late = message("all_reduce", (0, 1), (10, 11))
    at_once = [
        replace(message("all_reduce", (0,), (r,)), id=f"{r}", asynchronous=False) for r in (12, 13)
    ]
    one = program(made(0), made(1), late, *at_once, message("slice", (0,), (14,)))
    assert 3 * N <= shared_bytes(one) < 3.02 * N
    assert [shared_bytes(replace(one, backend=backend)) for backend in ("gloo", "nccl")] == [0, 0]
