"""Changing a tensor's layout: the communication steps that it takes, and their costs.

For one tensor on one mesh: all layouts, the elementary steps between them (all-reduce, all-gather,
reduce-scatter, all-to-all, slice), and the cheapest chain of steps from any layout to any other.
The ILP's edge costs and the lowered program both use it, so the steps that are costed are the steps
that run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from cost_models.errors import BadPlan
from planner.graph.layout import PARTIAL_SUM, REPLICATE, Layout, local_sizes
from planner.program.copies import Copies, copies_of

__all__ = ["Layouts", "Step"]

#: (kind, mesh axes, bytes of the logical buffer) -> seconds.
CommunicationTime = Callable[[str, tuple[int, ...], float], float]

#: (copies, elements sent, bytes per element) -> seconds.
CopyTime = Callable[[Copies, int, int], float]


@dataclass(frozen=True, slots=True)
class Step:
    """One elementary change of layout, as `planner.program.program.Communicate` runs it."""

    kind: str
    axes: tuple[int, ...]
    gather: int | None
    split: int | None
    before: Layout
    after: Layout


class Layouts:
    """All layouts of a tensor with flat sub-dims `flat` and `itemsize` bytes per element, and the
    distances between them, computed on first use."""

    def __init__(
        self,
        flat: tuple[int, ...],
        itemsize: int,
        mesh_sizes: tuple[int, ...],
        time: CommunicationTime,
        copy_time: CopyTime,
    ) -> None:
        self.flat = flat
        self.itemsize = itemsize
        self.mesh_sizes = mesh_sizes
        self._time = time
        self._copy_time = copy_time
        placements = (REPLICATE, PARTIAL_SUM, *range(len(flat)))
        every = (
            (a, local_sizes(flat, a, mesh_sizes))
            for a in itertools.product(placements, repeat=len(mesh_sizes))
        )
        self.sizes: dict[Layout, tuple[int, ...]] = {
            layout: sizes for layout, sizes in every if sizes is not None
        }
        self.layouts = tuple(sorted(self.sizes, key=lambda layout: PARTIAL_SUM in layout))
        self.num_whole = sum(PARTIAL_SUM not in layout for layout in self.layouts)
        self.index = {layout: i for i, layout in enumerate(self.layouts)}

    def cost(self, before: Layout, after: Layout) -> float:
        """Seconds of the cheapest chain; infinite if there is none (no tensor can become a partial
        sum)."""
        return float(self._closest[0][self.index[before], self.index[after]])

    def cost_table(self, before: list[Layout], after: list[Layout]) -> NDArray[np.float64]:
        """Seconds from each layout of `before` to each of `after`."""
        rows, columns = [self.index[x] for x in before], [self.index[x] for x in after]
        table: NDArray[np.float64] = self._closest[0][np.ix_(rows, columns)]
        return table

    def steps(self, before: Layout, after: Layout) -> tuple[Step, ...]:
        """The cheapest chain of steps. Raises BadPlan if there is none: only a damaged plan asks
        for such a change."""
        if (
            before not in self.index
            or after not in self.index
            or not math.isfinite(self.cost(before, after))
        ):
            raise BadPlan(
                f"no collectives turn layout {before} into {after}: the plan's layouts do not "
                "fit together; plan again"
            )
        at, end = self.index[before], self.index[after]
        out = []
        _, next_of, steps = self._closest
        while at != end:
            following = int(next_of[at, end])
            assert following >= 0, (before, after)
            out.append(steps[at, following])
            at = following
        return tuple(out)

    @cached_property
    def _closest(
        self,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], dict[tuple[int, int], Step]]:
        """All-pairs cheapest chains (Floyd-Warshall), with the first step of each. Layouts with
        partial sums come last: they are reached only from each other."""
        n = len(self.layouts)
        cost = np.full((n, n), np.inf)
        following = np.full((n, n), -1, dtype=np.int64)
        steps: dict[tuple[int, int], Step] = {}
        elementary = _elementary(len(self.flat), len(self.mesh_sizes))
        # A step's cost depends on sizes, not on other axes' partial sums.
        known: dict[tuple[object, ...], float] = {}
        for i, layout in enumerate(self.layouts):
            cost[i, i] = 0.0
            for step in elementary[layout]:
                j = self.index.get(step.after)
                if j is None:
                    continue
                key = (step.kind, step.axes, step.gather, step.split, self.sizes[layout])
                if key not in known:
                    known[key] = self._seconds(step)
                seconds = known[key]
                if seconds < cost[i, j]:
                    cost[i, j], following[i, j], steps[i, j] = seconds, j, step
        for k in range(n):
            rows = slice(0, n) if k < self.num_whole else slice(self.num_whole, n)
            columns = slice(0, self.num_whole) if k < self.num_whole else slice(0, n)
            through = cost[rows, k, None] + cost[None, k, columns]
            better = through < cost[rows, columns] * (1 - 1e-12)
            if better.any():
                np.copyto(cost[rows, columns], through, where=better)
                np.copyto(following[rows, columns], following[rows, k, None], where=better)
        return cost, following, steps

    def _seconds(self, step: Step) -> float:
        """Seconds of a step: the collective and its copies. A slice is costed as if its source were
        still read afterwards."""
        before, after = self.sizes[step.before], self.sizes[step.after]
        ranks = math.prod(self.mesh_sizes[a] for a in step.axes)
        copies = copies_of(
            step.kind,
            ranks=ranks,
            before=(before,),
            after=(math.prod(after),),
            gather=step.gather,
            split=step.split,
            overwritten=step.kind != "slice",
        )
        sent = self._time(step.kind, step.axes, float(self.numel(step) * self.itemsize))
        return sent + self._copy_time(copies, math.prod(before), self.itemsize)

    def numel(self, step: Step) -> int:
        """Elements of the whole logical buffer of a step, as counted by nccl-tests. All pieces
        count as large as the largest: that is how they are sent."""
        before, after = self.sizes[step.before], self.sizes[step.after]
        if step.kind not in ("all_gather", "reduce_scatter", "all_to_all"):
            return math.prod(before)
        sent = math.prod(before if step.kind == "all_gather" else after)
        if step.kind == "all_to_all":
            assert step.gather is not None
            # 0 for a tensor without elements.
            sent = sent // max(1, after[step.gather]) * before[step.gather]
        return sent * math.prod(self.mesh_sizes[a] for a in step.axes)


@cache
def _elementary(num_dims: int, num_axes: int) -> dict[Layout, tuple[Step, ...]]:
    """All elementary steps from every layout of a tensor with `num_dims` flat sub-dims."""
    placements = (REPLICATE, PARTIAL_SUM, *range(num_dims))
    return {
        layout: tuple(_steps_from(layout, num_dims))
        for layout in itertools.product(placements, repeat=num_axes)
    }


def _steps_from(layout: Layout, num_dims: int) -> Iterator[Step]:
    for axis, placement in enumerate(layout):
        if placement == REPLICATE:
            yield from _split(layout, (axis,), num_dims, "slice")
        elif placement >= 0 and _innermost(layout, axis, placement):
            yield _step("all_gather", layout, (axis,), REPLICATE, gather=placement)
            for other in range(num_dims):
                if other != placement and _innermost(layout, axis, other):
                    yield _step("all_to_all", layout, (axis,), other, gather=placement, split=other)
    partial = [axis for axis, placement in enumerate(layout) if placement == PARTIAL_SUM]
    for axes in _subsets(partial):
        yield _step("all_reduce", layout, axes, REPLICATE)
        yield from _split(layout, axes, num_dims, "reduce_scatter")
    for dim in range(num_dims):
        axes = tuple(axis for axis, placement in enumerate(layout) if placement == dim)
        for first in range(len(axes) - 1):
            yield _step("all_gather", layout, axes[first:], REPLICATE, gather=dim)


def _split(layout: Layout, axes: tuple[int, ...], num_dims: int, kind: str) -> Iterator[Step]:
    for dim in range(num_dims):
        if _innermost(layout, axes[0], dim):
            yield _step(kind, layout, axes, dim, split=dim)


def _innermost(layout: Layout, axis: int, dim: int) -> bool:
    """Whether no later axis splits `dim`: shards nest in the order of the axes, so only the
    innermost split can be added or removed."""
    return dim not in layout[axis + 1 :]


def _step(
    kind: str,
    layout: Layout,
    axes: tuple[int, ...],
    placement: int,
    gather: int | None = None,
    split: int | None = None,
) -> Step:
    after = tuple(placement if axis in axes else p for axis, p in enumerate(layout))
    return Step(kind, axes, gather, split, layout, after)


def _subsets(axes: list[int]) -> Iterator[tuple[int, ...]]:
    for count in range(1, len(axes) + 1):
        yield from itertools.combinations(axes, count)
