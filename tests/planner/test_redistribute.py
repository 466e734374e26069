"""Changes of layout: executed on the shards of all ranks in one process, and priced."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from planner.graph.layout import (
    PARTIAL_SUM,
    REPLICATE,
    Layout,
    Mesh,
    is_partial,
    local_sizes,
    piece_sizes,
)
from planner.program.copies import Copies
from planner.strategy.redistribute import Layouts, Step

MESHES = ((2,), (3,), (4,), (2, 2), (3, 2), (2, 4), (2, 2, 2))
Shards = list[NDArray[np.float64]]


def no_copies(copies: Copies, sent: int, itemsize: int) -> float:
    return 0.0


def seconds(kind: str, axes: tuple[int, ...], nbytes: float) -> float:
    """A plain cost: latency and bytes, twice the bytes for an all-reduce; slicing is free."""
    factor = {"all_reduce": 2.0, "slice": 0.0}.get(kind, 1.0)
    return factor * (1e-6 * len(axes) + nbytes / 1e9)


def mesh_of(sizes: tuple[int, ...]) -> Mesh:
    return Mesh(tuple("abc"[: len(sizes)]), sizes)


# ------------------------------------------------------------------------- all ranks in one process


def shards_of(full: NDArray[np.float64], layout: Layout, mesh: Mesh) -> Shards:
    """Every rank's shard: earlier axes cut first, so they are the outer ones; partial sums are
    unequal terms of the whole."""
    out = []
    for rank in range(mesh.num_devices):
        piece, place, weight = full, mesh.coordinate(rank), 1.0
        for axis, placement in enumerate(layout):
            if placement == PARTIAL_SUM:
                terms = np.arange(1.0, mesh.sizes[axis] + 1)
                weight *= terms[place[axis]] / terms.sum()
            elif placement >= 0:
                piece = np.array_split(piece, mesh.sizes[axis], placement)[place[axis]]
        out.append(piece * weight)
    return out


def run(step: Step, shards: Shards, mesh: Mesh) -> Shards:
    """What `step` makes of all ranks' shards. In a group, ranks stand in mesh order: the earlier
    axis is the outer one."""
    out: Shards = list(shards)
    for group in mesh.groups(step.axes):
        parts, counts = (
            [shards[rank] for rank in group],
            tuple(mesh.sizes[axis] for axis in step.axes),
        )
        for index, rank in enumerate(group):
            out[rank] = _result(step, parts, index, counts)
    return out


def _split(part: NDArray[np.float64], counts: tuple[int, ...], dim: int | None) -> Shards:
    assert dim is not None
    return np.split(part, np.cumsum(piece_sizes(part.shape[dim], counts))[:-1], dim)


def _result(step: Step, parts: Shards, index: int, counts: tuple[int, ...]) -> NDArray[np.float64]:
    if step.kind == "all_reduce":
        return sum(parts[1:], start=parts[0])
    if step.kind == "all_gather":
        return np.concatenate(parts, step.gather)
    if step.kind == "reduce_scatter":
        return _split(sum(parts[1:], start=parts[0]), counts, step.split)[index]
    if step.kind == "slice":
        return _split(parts[index], counts, step.split)[index]
    assert step.kind == "all_to_all"
    return np.concatenate([_split(part, counts, step.split)[index] for part in parts], step.gather)


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("flat", [(8,), (8, 4), (4, 3), (7,), (13, 5)])
def test_steps_make_the_shards_of_the_target(sizes: tuple[int, ...], flat: tuple[int, ...]) -> None:
    """For every pair of layouts with a way between them."""
    mesh, layouts = mesh_of(sizes), Layouts(flat, 8, sizes, seconds, no_copies)
    full = np.random.default_rng(0).standard_normal(flat)
    whole = {layout: shards_of(full, layout, mesh) for layout in layouts.layouts}
    done: dict[tuple[Step, ...], Shards] = {}
    count = 0
    for before, after in itertools.product(layouts.layouts, repeat=2):
        if not math.isfinite(layouts.cost(before, after)):
            continue
        shards, chain = whole[before], layouts.steps(before, after)
        for end in range(1, len(chain) + 1):
            if chain[:end] not in done:
                done[chain[:end]] = run(chain[end - 1], shards, mesh)
            shards = done[chain[:end]]
        # The steps decide which terms are left, but not their sum.
        if any(map(is_partial, after)):
            shards, expected = reduced(shards, after, mesh), reduced(whole[after], after, mesh)
        else:
            expected = whole[after]
        assert all(
            a.shape == b.shape and np.allclose(a, b, rtol=1e-12)
            for a, b in zip(shards, expected, strict=True)
        )
        count += 1
    assert count > len(layouts.layouts)


def reduced(shards: Shards, layout: Layout, mesh: Mesh) -> Shards:
    axes = tuple(axis for axis, placement in enumerate(layout) if is_partial(placement))
    out = list(shards)
    for group in mesh.groups(axes):
        for rank in group:
            out[rank] = sum((shards[r] for r in group[1:]), start=shards[group[0]])
    return out


def test_pieces_nest_in_the_order_of_the_axes() -> None:
    """The interpreter itself: 8 elements over 2 x 2 ranks, and over (4,): rank r holds run r."""
    full = np.arange(8.0)
    nested, flat = shards_of(full, (0, 0), mesh_of((2, 2))), shards_of(full, (0,), mesh_of((4,)))
    assert (
        [s.tolist() for s in nested]
        == [s.tolist() for s in flat]
        == [[0, 1], [2, 3], [4, 5], [6, 7]]
    )


# ---------------------------------------------------------------------------------- steps and costs


@st.composite
def tensors(draw: st.DrawFn) -> Layouts:
    sizes = draw(st.sampled_from(MESHES))
    flat = tuple(
        draw(
            st.lists(
                st.sampled_from([1, 2, 3, 4, 6, 7, 8, 12]),
                min_size=0,
                max_size=2 if len(sizes) == 3 else 3,
            )
        )
    )
    factors = {
        k: draw(st.floats(0.2, 5.0))
        for k in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "slice")
    }
    latency = draw(st.floats(1e-7, 1e-4))

    def time(kind: str, axes: tuple[int, ...], nbytes: float) -> float:
        return 0.0 if kind == "slice" else factors[kind] * (latency + nbytes / 1e9)

    return Layouts(flat, draw(st.sampled_from([4, 8])), sizes, time, no_copies)


@settings(max_examples=40, deadline=None)
@given(tensors())
def test_costs_are_those_of_a_shortest_path(layouts: Layouts) -> None:
    every = list(layouts.layouts)
    table = layouts.cost_table(every, every)
    assert (np.diagonal(table) == 0.0).all()
    assert (table >= 0.0).all()
    through = (table[:, :, None] + table[None, :, :]).min(axis=1)
    finite = np.isfinite(table)
    assert (np.isfinite(through) == finite).all()
    assert (table[finite] <= through[finite] * (1 + 1e-9) + 1e-15).all()
    for i, j in itertools.product(range(len(every)), repeat=2):
        gained = any(
            is_partial(b) and not is_partial(a) for a, b in zip(every[i], every[j], strict=True)
        )
        assert finite[i, j] or gained or not _reachable(every[i], every[j])
        if gained:
            assert not finite[i, j]


def _reachable(before: Layout, after: Layout) -> bool:
    """All that keeps no partial sum can be reduced and gathered to whole, and cut to anything
    from there."""
    return not any(map(is_partial, after))


@settings(max_examples=25, deadline=None)
@given(tensors())
def test_a_chain_costs_the_sum_of_its_steps(layouts: Layouts) -> None:
    for before, after in itertools.product(layouts.layouts, repeat=2):
        cost = layouts.cost(before, after)
        if not math.isfinite(cost):
            continue
        at, total = before, 0.0
        for step in layouts.steps(before, after):
            assert step.before == at
            at, total = step.after, total + layouts._seconds(step)
            assert local_sizes(layouts.flat, at, layouts.mesh_sizes) is not None
        assert at == after
        assert total == pytest.approx(cost, rel=1e-9, abs=1e-18)


@pytest.mark.parametrize(
    ("before", "after", "kinds"),
    [
        ((PARTIAL_SUM,), (REPLICATE,), ["all_reduce"]),
        ((PARTIAL_SUM,), (0,), ["reduce_scatter"]),
        ((0,), (REPLICATE,), ["all_gather"]),
        ((0,), (1,), ["all_to_all"]),
        ((REPLICATE,), (1,), ["slice"]),
        ((1,), (1,), []),
    ],
)
def test_one_axis_takes_the_one_step_there_is(
    before: Layout, after: Layout, kinds: list[str]
) -> None:
    layouts = Layouts((8, 8), 4, (2,), seconds, no_copies)
    assert [step.kind for step in layouts.steps(before, after)] == kinds


def test_two_axes_are_reduced_as_one() -> None:
    layouts = Layouts((8, 8), 4, (2, 2), seconds, no_copies)
    (step,) = layouts.steps((PARTIAL_SUM, PARTIAL_SUM), (REPLICATE, REPLICATE))
    assert (step.kind, step.axes) == ("all_reduce", (0, 1))
    (step,) = layouts.steps((0, 0), (REPLICATE, REPLICATE))
    assert (step.kind, step.axes, step.gather) == ("all_gather", (0, 1), 0)


def test_bytes_are_those_of_the_whole_buffer() -> None:
    """As nccl-tests counts: of an all-gather what comes out, of a reduce-scatter and an
    all-reduce what goes in."""
    seen: list[tuple[str, float]] = []

    def time(kind: str, axes: tuple[int, ...], nbytes: float) -> float:
        seen.append((kind, nbytes))
        return 1.0

    Layouts((16,), 4, (4,), time, no_copies).cost((0,), (0,))
    assert set(seen) == {
        ("all_gather", 64.0),
        ("reduce_scatter", 64.0),
        ("all_reduce", 64.0),
        ("slice", 64.0),
    }


def test_an_uneven_step_sends_pieces_as_large_as_the_largest() -> None:
    seen: list[tuple[str, float]] = []

    def time(kind: str, axes: tuple[int, ...], nbytes: float) -> float:
        seen.append((kind, nbytes))
        return 1.0

    Layouts((7,), 4, (4,), time, no_copies).cost((0,), (0,))  # pieces of 2, 2, 2 and 1
    assert set(seen) == {
        ("all_gather", 32.0),
        ("reduce_scatter", 32.0),
        ("all_reduce", 28.0),
        ("slice", 28.0),
    }
    seen.clear()
    # Pieces of at most 4 x 5 and 7 x 3: blocks of 4 x 3.
    Layouts((7, 5), 4, (2,), time, no_copies).cost((0,), (0,))
    assert {nbytes for kind, nbytes in seen if kind == "all_to_all"} == {2 * 4 * 3 * 4.0}


def test_a_tensor_without_elements_sends_nothing() -> None:
    """As a model without the register tokens that it could have makes one."""
    seen: list[float] = []

    def time(kind: str, axes: tuple[int, ...], nbytes: float) -> float:
        seen.append(nbytes)
        return 1.0

    Layouts((0, 4), 4, (2,), time, no_copies).cost((0,), (0,))
    assert set(seen) == {0.0}


def test_a_split_into_empty_shards_is_no_layout() -> None:
    layouts = Layouts((3, 4), 4, (4,), seconds, no_copies)
    assert set(layouts.layouts) == {(REPLICATE,), (PARTIAL_SUM,), (1,)}
    assert not math.isfinite(layouts.cost((REPLICATE,), (PARTIAL_SUM,)))
