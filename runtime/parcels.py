"""What crosses between the stages of a pipeline: sends and receives of one rank.

A value crosses as one parcel for each pair of ranks of which one holds a piece that the other needs.
If all ranks share memory, every pair has a mailbox: the sender copies a parcel into it, and the
receiver out of it. Else a parcel is a message of torch.distributed; the rule by which receives are
posted is `planner/schedules/exchanges.py`, and both ends take the messages of a channel in the same
order. A parcel that goes to the same rank (two stages of one place) is handed over.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cost_models.memory import dtype_bytes
from planner.graph.layout import local_shape
from planner.kernels.mailbox import Mailbox, mailbox_bytes
from planner.kernels.shared import shared_memory_of
from planner.predict.stages import flow_of
from planner.program.actions import Action
from planner.program.program import InputState
from planner.schedules.lanes import Lane, lanes
from planner.stages.pipeline import Indices, Parcel, Pipeline, Transfer, parcels
from runtime.recorder import Recorder

__all__ = ["BACKWARD", "FORWARD", "UPDATE", "Parcels", "state_of"]

FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"

#: What is sent once a step.
_ONCE = Lane(order=(0,), slots=1)


class _Elements:
    """A product of indices of a tensor: a view, if the indices of every dim follow each other."""

    def __init__(self, indices: Sequence[Indices] | None, device: torch.device) -> None:
        self.runs: list[tuple[int, int, int]] = []
        self.grid: tuple[Tensor, ...] | None = None
        if any(not isinstance(found, range) for found in indices or ()):
            each = (torch.tensor(found, device=device) for found in indices or ())
            self.grid = torch.meshgrid(*each, indexing="ij")
        else:
            self.runs = [(dim, found[0], len(found)) for dim, found in enumerate(indices or ())]

    def of(self, tensor: Tensor) -> Tensor:
        """The elements of a tensor."""
        if self.grid is not None:
            return tensor[self.grid]
        for dim, start, size in self.runs:
            tensor = tensor.narrow(dim, start, size)
        return tensor

    def write(self, tensor: Tensor, piece: Tensor) -> None:
        """Writes them."""
        if self.grid is not None:
            tensor[self.grid] = piece
        else:
            self.of(tensor).copy_(piece)


@dataclass(slots=True)
class _Mine:
    """A parcel that this rank sends or receives: the other rank, the elements of this rank's shard;
    and the mailbox, if there is one, in which `numbers` has the place of a microbatch."""

    parcel: Parcel
    other: int
    elements: _Elements
    box: Mailbox | None
    numbers: Mapping[int, int]
    steps: int = 0

    def number(self, microbatch: int) -> int:
        """The number of the message, of all that were sent so far."""
        return self.steps * len(self.numbers) + self.numbers[microbatch]


@dataclass(slots=True)
class _Coming:
    """A parcel that has been asked for."""

    buffer: Tensor
    work: Any


class Parcels:
    """The parcels of one rank of a pipeline. All ranks make theirs together."""

    def __init__(self, pipeline: Pipeline, rank: int, device: torch.device) -> None:
        self.pipeline, self.rank, self.device = pipeline, rank, device
        several = dist.is_initialized() and pipeline.num_ranks > 1
        world = dist.group.WORLD if several else None
        self.memory = None if world is None else shared_memory_of(world)
        by_message = several and self.memory is None
        self.groups = {
            (phase, up): dist.new_group() if by_message else None
            for phase in (FORWARD, BACKWARD, UPDATE)
            for up in (False, True)
        }
        self.going: list[tuple[Any, Tensor]] = []
        self.coming: dict[tuple[int, int], list[_Coming]] = {}
        #: What a stage of this rank made for another stage of it.
        self.here: dict[tuple[int, int], Tensor] = {}
        self.sends: dict[int, list[_Mine]] = defaultdict(list)
        self.receives: dict[int, list[_Mine]] = defaultdict(list)
        self._shapes: dict[int, tuple[int, ...]] = {}
        lanes_of = lanes(pipeline.schedule, flow_of(pipeline))
        for transfer in pipeline.transfers:
            key = (transfer.source, transfer.target, transfer.phase == FORWARD)
            self._find(transfer, _ONCE if transfer.phase == UPDATE else lanes_of[key])

    def _find(self, transfer: Transfer, lane: Lane) -> None:
        """Notes this rank's parcels of a value, with their mailboxes."""
        programs = self.pipeline.programs
        first, then = map(self.pipeline.first_rank, (transfer.source, transfer.target))
        meshes = programs[transfer.source].mesh, programs[transfer.target].mesh
        numbers = {microbatch: place for place, microbatch in enumerate(lane.order)}
        for parcel in parcels(transfer, *meshes):
            sender, receiver = first + parcel.sender, then + parcel.receiver
            box = None if sender == receiver else self._box(transfer, parcel, lane)
            for mine, other, indices, found in (
                (sender, receiver, parcel.take, self.sends),
                (receiver, sender, parcel.put, self.receives),
            ):
                if mine == self.rank:
                    elements = _Elements(indices, self.device)
                    made = None if box is None else box()
                    found[transfer.number].append(_Mine(parcel, other, elements, made, numbers))
        if transfer.number in self.receives:
            place = meshes[1].coordinate(self.rank - then)
            piece = transfer.received
            self._shapes[transfer.number] = local_shape(
                piece.subshape, piece.layout, meshes[1].sizes, place
            )

    def _box(self, transfer: Transfer, parcel: Parcel, lane: Lane) -> Any:
        """What makes a parcel's mailbox; the room is taken on every rank."""
        if (memory := self.memory) is None:
            return None
        nbytes = mailbox_bytes(parcel.numel, dtype_bytes(transfer.dtype), lane.slots)
        offset, dtype = memory.reserve(nbytes), getattr(torch, transfer.dtype)
        return lambda: Mailbox(memory, offset, lane.slots, parcel.numel, dtype)

    # ------------------------------------------------------------------------------------- messages

    def between(self, source: Action, target: Action) -> list[Transfer]:
        """The values that one action makes for another, if they go by messages."""
        if self.memory is not None:
            return []
        phase = FORWARD if source.body.startswith("F") else BACKWARD
        wanted = (source.stage, target.stage, phase)
        return [t for t in self.pipeline.transfers if (t.source, t.target, t.phase) == wanted]

    def send(
        self, transfer: Transfer, microbatch: int, value: Tensor, recorder: Recorder | None
    ) -> None:
        """Sends a value to all ranks that need pieces of it; waits only for room in mailboxes."""
        self._clear()
        mine = self.sends[transfer.number]
        if any(one.other == self.rank for one in mine):
            self.here[transfer.number, microbatch] = value
        away = [one for one in mine if one.other != self.rank]
        if away:
            with _noted(recorder, "send", transfer, transfer.source, microbatch):
                for one in away:
                    self._send(one, transfer, microbatch, value)

    def _send(self, mine: _Mine, transfer: Transfer, microbatch: int, value: Tensor) -> None:
        piece = mine.elements.of(value)
        if mine.box is not None:
            number = mine.number(microbatch)
            mine.box.empty(number).view(piece.shape).copy_(piece)
            mine.box.written(number)
            return
        piece = piece.contiguous()
        work = dist.isend(
            piece,
            mine.other,
            group=self.groups[self._way(transfer)],
            tag=self._tag(transfer, microbatch),
        )
        self.going.append((work, piece))

    def _way(self, transfer: Transfer) -> tuple[str, bool]:
        """The phase, and whether a value goes to a later place: NCCL takes the messages of a pair of
        ranks in a group in one order, so the two directions have groups of their own."""
        places = self.pipeline.schedule.places
        return transfer.phase, places[transfer.source] < places[transfer.target]

    def post(self, transfer: Transfer, microbatch: int) -> None:
        """Asks for a value; does not wait. Values in mailboxes need not be asked for."""
        if self.memory is not None:
            return
        asked = []
        for mine in self.receives[transfer.number]:
            if mine.other != self.rank:
                buffer = self._empty(transfer, mine.parcel.shape)
                work = dist.irecv(
                    buffer,
                    mine.other,
                    group=self.groups[self._way(transfer)],
                    tag=self._tag(transfer, microbatch),
                )
                asked.append(_Coming(buffer, work))
        self.coming[transfer.number, microbatch] = asked

    def receive(self, transfer: Transfer, microbatch: int, recorder: Recorder | None) -> Tensor:
        """A value in this rank's piece. Between stages of one place the schedule has no messages;
        if they hold it in unlike pieces, it is asked for here."""
        mine = self.receives[transfer.number]
        local = self.here.pop((transfer.number, microbatch), None)
        if len(mine) == 1 and local is not None and mine[0].parcel.put is None:
            (sent,) = (one for one in self.sends[transfer.number] if one.other == self.rank)
            return sent.elements.of(local)
        if self.memory is None and (transfer.number, microbatch) not in self.coming:
            self.post(transfer, microbatch)
        with _noted(recorder, "receive", transfer, transfer.target, microbatch):
            return self._received(transfer, microbatch, local)

    def _received(self, transfer: Transfer, microbatch: int, local: Tensor | None) -> Tensor:
        asked = iter(self.coming.pop((transfer.number, microbatch), ()))
        out: Tensor | None = None
        for mine in self.receives[transfer.number]:
            if mine.other == self.rank:
                assert local is not None
                (sent,) = (one for one in self.sends[transfer.number] if one.other == self.rank)
                piece = sent.elements.of(local)
            elif mine.box is None:
                one = next(asked)
                one.work.wait()
                piece = one.buffer
                if mine.parcel.put is None:
                    return piece
            else:
                piece = mine.box.full(mine.number(microbatch)).view(mine.parcel.shape)
            if out is None:
                out = self._empty(transfer, self._shapes[transfer.number])
            mine.elements.write(out, piece)
            if mine.box is not None:
                mine.box.read(mine.number(microbatch))
        assert out is not None, transfer
        return out

    def finish(self) -> None:
        """Ends a step: waits until all that was sent by messages has left."""
        for work, _ in self.going:
            work.wait()
        self.going.clear()
        for found in (self.sends, self.receives):
            for mine in found.values():
                for one in mine:
                    one.steps += 1

    def _clear(self) -> None:
        """Lets go of what has left."""
        while self.going and self.going[0][0].is_completed():
            self.going.pop(0)

    def _tag(self, transfer: Transfer, microbatch: int) -> int:
        return transfer.number * self.pipeline.schedule.microbatches + microbatch

    def _empty(self, transfer: Transfer, shape: Sequence[int]) -> Tensor:
        return torch.empty(shape, dtype=getattr(torch, transfer.dtype), device=self.device)


def _noted(
    recorder: Recorder | None, kind: str, transfer: Transfer, stage: int, microbatch: int
) -> contextlib.AbstractContextManager[None]:
    """A context that the recorder notes, if there is one."""
    if recorder is None:
        return contextlib.nullcontext()
    return recorder.passing(kind, transfer.number, transfer.phase, stage, microbatch)


def state_of(inputs: Sequence[InputState], number: int) -> int:
    """The program value by which a crossing comes into a stage."""
    return next(s.value for s in inputs if s.kind == "received" and s.name == str(number))
