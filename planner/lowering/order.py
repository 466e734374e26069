"""Orders a lowered step: the passes over its instructions, and where each value is freed.

Instructions in order of need -> the final order. Gradients' reductions are merged into flat
buckets, started when the bucket is full; gathers of one layer's parameters are merged and started
one layer ahead; a value is freed after its last use and that of its views. Invariant: a value is
written before it is read.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from functools import partial

from planner.graph.checking import checked
from planner.graph.layout import Mesh
from planner.lowering.draft import base_of
from planner.lowering.early import started_early
from planner.lowering.gradient_buckets import bucketed
from planner.lowering.in_flight import bounded, continued_late
from planner.lowering.late_reports import waited_late
from planner.lowering.prefetch import prefetched
from planner.program.check_order import lost_faults, order_faults
from planner.program.program import Instruction, freeing, reads, writes
from planner.strategy.costing import Costing

__all__ = ["finish"]


def finish(
    instructions: list[Instruction],
    gathers: dict[str, str],
    alias: dict[int, int],
    kept: set[int],
    costing: Costing,
    mesh: Mesh,
    bucket: int,
    trained: frozenset[int],
    *,
    overlaps: bool,
    buffered: bool,
) -> tuple[Instruction, ...]:
    """The final order. `gathers` has the ids of the instructions that cast and gather parameters,
    with their layer; `alias` maps a view to the value that it is a view of; values in `kept`
    outlive the step; `bucket` is the size of a bucket in bytes; `trained` are the values that the
    update writes to; `overlaps`: the device that was planned for runs large messages beside
    compute; `buffered`: a message under way holds memory of the device."""
    passes: tuple[tuple[str, Callable[[list[Instruction]], list[Instruction]]], ...] = (
        ("early starts", partial(started_early, overlaps=overlaps)),
        ("prefetching", lambda ordered: prefetched(ordered, gathers, costing)),
        ("buckets", lambda ordered: bucketed(ordered, costing, bucket)),
        ("late slices", continued_late),
        ("late reports", lambda ordered: waited_late(ordered, alias, trained)),
        ("messages under way", bounded if buffered else list),
    )
    ordered = instructions
    for name, one in passes:
        before, ordered = ordered, one(ordered)
        _check(name, before, ordered, mesh)
    return _freed(ordered, alias, kept)


def _check(name: str, before: list[Instruction], after: list[Instruction], mesh: Mesh) -> None:
    checked(name, lambda: itertools.chain(order_faults(after, mesh), lost_faults(before, after)))


def _freed(
    instructions: list[Instruction], alias: dict[int, int], kept: set[int]
) -> tuple[Instruction, ...]:
    """The instructions with each value freed after its own last use and that of its views."""
    last: dict[int, int] = {}
    for position, instruction in enumerate(instructions):
        for value in (*reads(instruction), *writes(instruction)):
            last[value] = last[base_of(alias, value)] = position
    frees: dict[int, list[int]] = defaultdict(list)
    for value, position in last.items():
        if value not in kept:
            frees[position].append(value)
    return tuple(
        [
            freeing(instruction, tuple(frees.get(i, ())))
            for i, instruction in enumerate(instructions)
        ]
    )
