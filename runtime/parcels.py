"""What crosses between the stages of a pipeline: sends and receives of one rank.

The rule by which receives are posted is `planner/schedules/exchanges.py`. A message of the schedule
is one parcel for each value and each pair of ranks; both ends take them in the same order. A parcel
that goes to the same rank (two stages of one place) is handed over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from planner.graph.layout import local_shape
from planner.program.actions import Action
from planner.program.program import InputState
from planner.stages.pipeline import Indices, Parcel, Pipeline, Transfer, parcels

__all__ = ["Parcels"]

FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"


@dataclass(frozen=True, slots=True)
class _Mine:
    """A parcel that this rank sends or receives: its value, the other rank, and the tag."""

    transfer: Transfer
    parcel: Parcel
    other: int
    tag: int


@dataclass(slots=True)
class _Coming:
    """A parcel that has been asked for."""

    mine: _Mine
    buffer: Tensor
    work: Any


@dataclass(slots=True)
class Parcels:
    """The parcels of one rank of a pipeline. `groups` are the process groups of the two
    directions."""

    pipeline: Pipeline
    rank: int
    device: torch.device
    groups: Mapping[str, Any]
    going: list[tuple[Any, Tensor]] = field(default_factory=list)
    coming: dict[tuple[int, int], list[_Coming]] = field(default_factory=dict)
    #: What a stage of this rank made for another stage of it.
    here: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    sends: dict[int, list[_Mine]] = field(default_factory=lambda: defaultdict(list))
    receives: dict[int, list[_Mine]] = field(default_factory=lambda: defaultdict(list))
    by_ends: dict[tuple[int, int, str], list[Transfer]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def __post_init__(self) -> None:
        for transfer in self.pipeline.transfers:
            ends = (transfer.source, transfer.target, transfer.phase)
            self.by_ends[ends].append(transfer)
            self._find(transfer)

    def _find(self, transfer: Transfer) -> None:
        programs = self.pipeline.programs
        first, then = map(self.pipeline.first_rank, (transfer.source, transfer.target))
        meshes = programs[transfer.source].mesh, programs[transfer.target].mesh
        if not any(
            first <= self.rank < first + mesh.num_devices
            for first, mesh in zip((first, then), meshes, strict=True)
        ):
            return
        for parcel in parcels(transfer, *meshes):
            sender, receiver = first + parcel.sender, then + parcel.receiver
            if sender == self.rank:
                self.sends[transfer.number].append(
                    _Mine(transfer, parcel, receiver, transfer.number)
                )
            if receiver == self.rank:
                self.receives[transfer.number].append(
                    _Mine(transfer, parcel, sender, transfer.number)
                )

    # ------------------------------------------------------------------------------------- messages

    def between(self, source: Action, target: Action) -> list[Transfer]:
        """The values that one action makes for another."""
        phase = FORWARD if source.body.startswith("F") else BACKWARD
        return self.by_ends[source.stage, target.stage, phase]

    def send(self, transfer: Transfer, microbatch: int, value: Tensor) -> None:
        """Sends a value to all ranks that need pieces of it; does not wait."""
        self._clear()
        for mine in self.sends[transfer.number]:
            if mine.other == self.rank:
                self.here[transfer.number, microbatch] = value
                continue
            piece = value if mine.parcel.take is None else _taken(value, mine.parcel.take)
            piece = piece.contiguous()
            work = dist.isend(
                piece,
                mine.other,
                group=self.groups[transfer.phase],
                tag=self._tag(mine, microbatch),
            )
            self.going.append((work, piece))

    def post(self, transfer: Transfer, microbatch: int) -> None:
        """Asks for a value; does not wait."""
        asked = []
        for mine in self.receives[transfer.number]:
            if mine.other == self.rank:
                continue
            buffer = torch.empty(
                mine.parcel.shape, dtype=getattr(torch, transfer.dtype), device=self.device
            )
            work = dist.irecv(
                buffer,
                mine.other,
                group=self.groups[transfer.phase],
                tag=self._tag(mine, microbatch),
            )
            asked.append(_Coming(mine, buffer, work))
        self.coming[transfer.number, microbatch] = asked

    def receive(self, transfer: Transfer, microbatch: int) -> Tensor:
        """A value in this rank's piece. Between stages of one place the schedule has no messages;
        if they hold it in unlike pieces, it is asked for here."""
        if (transfer.number, microbatch) not in self.coming:
            self.post(transfer, microbatch)
        found = self.coming.pop((transfer.number, microbatch))
        for one in found:
            one.work.wait()
        if len(found) == 1 and found[0].mine.parcel.put is None:
            return found[0].buffer
        out: Tensor | None = None
        for one in found:
            if out is None:
                out = self._empty(transfer)
            _put(out, one.buffer, one.mine.parcel.put)
        local = self.here.pop((transfer.number, microbatch), None)
        if local is not None:
            (mine,) = (m for m in self.receives[transfer.number] if m.other == self.rank)
            piece = local if mine.parcel.take is None else _taken(local, mine.parcel.take)
            if out is None and mine.parcel.put is None:
                return piece
            out = self._empty(transfer) if out is None else out
            _put(out, piece, mine.parcel.put)
        assert out is not None, transfer
        return out

    def finish(self) -> None:
        """Waits until all that was sent has left."""
        for work, _ in self.going:
            work.wait()
        self.going.clear()

    def _clear(self) -> None:
        """Lets go of what has left."""
        while self.going and self.going[0][0].is_completed():
            self.going.pop(0)

    def _tag(self, mine: _Mine, microbatch: int) -> int:
        return mine.tag * self.pipeline.schedule.microbatches + microbatch

    def _empty(self, transfer: Transfer) -> Tensor:
        mesh = self.pipeline.programs[transfer.target].mesh
        piece = transfer.received
        place = mesh.coordinate(self.rank - self.pipeline.first_rank(transfer.target))
        shape = local_shape(piece.subshape, piece.layout, mesh.sizes, place)
        return torch.empty(shape, dtype=getattr(torch, transfer.dtype), device=self.device)


def _taken(value: Tensor, indices: Sequence[Indices]) -> Tensor:
    """The elements of a product of indices."""
    for dim, found in enumerate(indices):
        value = _along(value, dim, found)
    return value


def _along(value: Tensor, dim: int, found: Indices) -> Tensor:
    start, size = (found[0] if found else 0), len(found)
    if found == tuple(range(start, start + size)):
        return value if size == value.shape[dim] else value.narrow(dim, start, size)
    return value.index_select(dim, torch.tensor(found, device=value.device))


def _put(out: Tensor, piece: Tensor, indices: Sequence[Indices] | None) -> None:
    """Writes a piece to the elements of a product of indices."""
    if indices is None:
        out.copy_(piece)
        return
    if not indices:
        out.copy_(piece)
        return
    grid = torch.meshgrid(*(torch.tensor(i, device=out.device) for i in indices), indexing="ij")
    out[grid] = piece


def state_of(inputs: Sequence[InputState], number: int) -> int:
    """The program value by which a crossing comes into a stage."""
    return next(s.value for s in inputs if s.kind == "received" and s.name == str(number))
