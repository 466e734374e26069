"""A pipeline: the programs of its stages, the schedule of their actions, and what they send to each
other.

Ranks are numbered place after place. A value crosses in parcels, one for each pair of ranks of which
one holds a piece that the other needs: each element is sent to a rank once, by one of the ranks that
hold it, and ranks that hold the same share the sending.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from planner.graph.layout import (
    Layout,
    Mesh,
    SubShape,
    is_split,
    local_shape,
    piece_sizes,
    start_of,
)
from planner.program.program import InputState, ParameterState, Program
from planner.schedules.schedule import Schedule

__all__ = ["Indices", "Parcel", "Piece", "Pipeline", "Transfer", "indices_of", "parcels"]

#: The elements of a dim, in order.
Indices = range | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """How a stage holds a value that crosses."""

    subshape: SubShape
    layout: Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A value that stage `source` sends to stage `target`, by the number of its crossing. `phase`:
    `forward` or `backward`, in every microbatch, or `update`, once a step."""

    number: int
    source: int
    target: int
    phase: str
    dtype: str
    sent: Piece
    received: Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """What one rank sends to another of a value: which elements of the sender's shard, dim by dim,
    go to which of the receiver's. None: all of the shard, as it is. `shape` is that of the parcel.
    Ranks count from the first one of their stage."""

    sender: int
    receiver: int
    take: tuple[Indices, ...] | None
    put: tuple[Indices, ...] | None
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """`programs[s]` is the program of stage `s`, on a mesh of its own; `firsts[p]` the first rank of
    place `p`."""

    programs: tuple[Program, ...]
    schedule: Schedule
    transfers: tuple[Transfer, ...]
    firsts: tuple[int, ...]

    @property
    def num_ranks(self) -> int:
        """The ranks of all places."""
        return (
            self.firsts[-1] + self.programs[self.schedule.stages_at(self._last)[0]].mesh.num_devices
        )

    @property
    def parameters(self) -> tuple[ParameterState, ...]:
        """The parameters of all stages."""
        return tuple(state for program in self.programs for state in program.parameters)

    @property
    def inputs(self) -> tuple[InputState, ...]:
        """What comes into the stages."""
        return tuple(state for program in self.programs for state in program.inputs)

    @property
    def microbatches(self) -> int:
        """The number of microbatches of a step."""
        return self.schedule.microbatches

    @property
    def num_parts(self) -> int:
        """The most parts in which a gradient is added up."""
        return max(program.num_parts for program in self.programs)

    @property
    def _last(self) -> int:
        return self.schedule.num_places - 1

    def place_of(self, rank: int) -> int:
        """The place that a rank belongs to."""
        return max(place for place, first in enumerate(self.firsts) if first <= rank)

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The stages that a rank runs."""
        return self.schedule.stages_at(self.place_of(rank))

    def first_rank(self, stage: int) -> int:
        """The first rank of a stage."""
        return self.firsts[self.schedule.places[stage]]


def indices_of(piece: Piece, mesh: Mesh, rank: int) -> tuple[Indices, ...]:
    """The elements of every dim that a rank of the mesh holds, in the order of its shard: a range
    wherever they follow each other."""
    place = mesh.coordinate(rank)
    flat = [(0, size) for dim in piece.subshape for size in dim]
    for axis, placement in enumerate(piece.layout):
        if is_split(placement):
            start, size = flat[placement]
            count = mesh.sizes[axis]
            flat[placement] = (
                start + start_of(size, count, place[axis]),
                piece_sizes(size, (count,))[place[axis]],
            )
    out, at = [], 0
    for dim in piece.subshape:
        out.append(_elements(dim, flat[at : at + len(dim)]))
        at += len(dim)
    return tuple(out)


def _elements(sizes: Sequence[int], parts: Sequence[tuple[int, int]]) -> Indices:
    """The elements of a dim, made of sub-dims of which some parts (first, number) are held."""
    found: Indices = range(1)
    for size, (start, length) in zip(sizes, parts, strict=True):
        if isinstance(found, range) and (length == size or len(found) == 1):
            first = found.start * size + start
            found = range(first, first + (len(found) - 1) * size + length)
        else:
            found = tuple(i * size + j for i in found for j in range(start, start + length))
    return found


def parcels(
    transfer: Transfer, source: Mesh, target: Mesh, receivers: Iterable[int] | None = None
) -> Iterator[Parcel]:
    """All parcels of a value that crosses from the ranks of one mesh to those of another, or those
    for some `receivers`."""
    sent, received = transfer.sent, transfer.received
    every = range(target.num_devices) if receivers is None else receivers
    if sent == received and source.sizes == target.sizes:
        for rank in every:  # each rank sends its shard to the same rank of the other stage
            shape = local_shape(sent.subshape, sent.layout, source.sizes, source.coordinate(rank))
            yield Parcel(sender=rank, receiver=rank, take=None, put=None, shape=shape)
        return
    holders: dict[tuple[Indices, ...], list[int]] = defaultdict(list)
    for rank in range(source.num_devices):
        holders[indices_of(sent, source, rank)].append(rank)
    turn: dict[tuple[Indices, ...], int] = defaultdict(int)
    for receiver in every:
        wanted = indices_of(received, target, receiver)
        for held, ranks in holders.items():
            common = _common(held, wanted)
            if common is None:
                continue
            sender = ranks[turn[held] % len(ranks)]
            turn[held] += 1
            yield Parcel(
                sender=sender,
                receiver=receiver,
                take=None if held == common else _within(common, held),
                put=None if wanted == common else _within(common, wanted),
                shape=tuple(map(len, common)),
            )


def _common(one: tuple[Indices, ...], other: tuple[Indices, ...]) -> tuple[Indices, ...] | None:
    """The elements that two pieces have in common, dim by dim; None if there are none."""
    out: list[Indices] = []
    for a, b in zip(one, other, strict=True):
        if isinstance(a, range) and isinstance(b, range):
            both: Indices = range(max(a.start, b.start), min(a.stop, b.stop))
        else:
            both = tuple(sorted({*a} & {*b}))
        if not both:
            return None
        out.append(both)
    return tuple(out)


def _within(common: Sequence[Indices], held: tuple[Indices, ...]) -> tuple[Indices, ...]:
    """The places of elements among those that a rank holds, dim by dim."""
    out: list[Indices] = []
    for some, own in zip(common, held, strict=True):
        if isinstance(some, range) and isinstance(own, range):
            out.append(range(some.start - own.start, some.stop - own.start))
        else:
            at = {element: place for place, element in enumerate(own)}
            out.append(tuple(at[element] for element in some))
    return tuple(out)
