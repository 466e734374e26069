"""The checker of a `Communicate`, and of the collectives of all ranks' programs together.

Instructions -> faults, one line each. A rank whose collective the others do not enter hangs, and a
buffer that is longer on one side is silently filled only in part. So the collectives of all ranks
are compared one by one, and their pieces group by group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from cost_models.memory import dtype_bytes
from planner.graph.layout import Mesh
from planner.program.program import Communicate, Program

__all__ = ["Kind", "Meeting", "meeting_faults", "meetings", "message_faults", "sent_faults"]

#: The shape and dtype of a value.
Kind = tuple[tuple[int, ...], str]

#: The sub-dims that a message of each kind names: (has `gather`, has `split`).
_NAMES = {
    "all_reduce": (False, False),
    "all_gather": (True, False),
    "reduce_scatter": (False, True),
    "all_to_all": (True, True),
    "slice": (False, True),
}


# -------------------------------------------------------------------------------------- one message


def message_faults(message: Communicate, mesh: Mesh) -> Iterator[str]:
    """The faults of a message by itself."""
    if message.kind not in _NAMES:
        yield f"{message.id} is a {message.kind}, no kind of message ({', '.join(_NAMES)})"
        return
    if (
        not message.axes
        or tuple(sorted({*message.axes})) != message.axes
        or not {*message.axes} <= {*range(len(mesh.sizes))}
    ):
        yield f"{message.id} is over axes {message.axes}, the mesh is {mesh}: name each once, in order"
        return
    if (message.gather is not None, message.split is not None) != _NAMES[message.kind]:
        yield f"{message.id} is a {message.kind} that gathers sub-dim {message.gather} and splits {message.split}"
        return
    if message.reduce not in ("sum", "max"):
        yield f"{message.id} reduces by {message.reduce!r}: sum or max"
    counts = {
        len(part)
        for part in (
            message.sources,
            message.results,
            message.expanded,
            message.shapes,
            message.dtypes,
        )
    }
    if len(counts) > 1 or not message.sources:
        yield f"{message.id} has unlike numbers of sources, results, shapes and dtypes: {sorted(counts)}"
        return
    if len({*message.dtypes}) > 1:
        yield f"{message.id} is one buffer of several dtypes: {', '.join(sorted({*message.dtypes}))}"
    yield from _pieces_faults(message, mesh)
    sent = sum(
        math.prod(flat) * dtype_bytes(dtype)
        for flat, dtype in zip(message.expanded, message.dtypes, strict=True)
    )
    whole = sent * (
        math.prod(mesh.sizes[axis] for axis in message.axes) if message.kind == "all_gather" else 1
    )
    if message.nbytes < whole:
        yield f"{message.id} is said to move {message.nbytes} bytes, its values are {whole}"
    if message.asynchronous and message.kind == "slice":
        yield f"{message.id} is an asynchronous slice: nothing is sent that could be waited for"


def _pieces_faults(message: Communicate, mesh: Mesh) -> Iterator[str]:
    """Pieces that are not one per rank of the group, or do not add up to the sub-dim split."""
    ranks = math.prod(mesh.sizes[axis] for axis in message.axes)
    for name, dim, pieces_of in (
        ("gathers", message.gather, message.gather_pieces),
        ("splits", message.split, message.split_pieces),
    ):
        if pieces_of and len(pieces_of) != len(message.sources):
            yield f"{message.id} {name} {len(message.sources)} values and has the pieces of {len(pieces_of)}"
            return
        for number, flat in enumerate(message.expanded):
            pieces = pieces_of[number] if pieces_of else ()
            if dim is not None and not 0 <= dim < len(flat):
                yield f"{message.id} {name} sub-dim {dim} of a value of {len(flat)}"
            elif pieces and (dim is None or len(pieces) != ranks):
                yield f"{message.id} {name} {len(pieces)} pieces {pieces}, its group has {ranks} ranks"
            elif name == "splits" and dim is not None and pieces and sum(pieces) != flat[dim]:
                yield f"{message.id} splits {flat[dim]} into pieces {pieces} of {sum(pieces)}"
            elif name == "splits" and dim is not None and not pieces and flat[dim] % ranks:
                yield f"{message.id} splits {flat[dim]} over {ranks} ranks without saying into which pieces"


def sent_faults(
    message: Communicate, kinds: Mapping[int, Kind], mesh: Mesh, rank: int
) -> Iterator[str]:
    """Shapes of a message that do not follow from its sources and its change of layout; `kinds` are
    the shapes and dtypes of its sources."""
    place = mesh.position(message.axes, rank)
    parts = zip(message.sources, message.expanded, message.shapes, message.dtypes, strict=True)
    for number, (source, flat, shape, dtype) in enumerate(parts):
        if source not in kinds:
            continue
        known, known_dtype = kinds[source]
        if known_dtype != dtype:
            yield f"{message.id} sends value {source} as {dtype}, it is {known_dtype}"
        if math.prod(known) != math.prod(flat):
            yield f"{message.id} sends value {source} as {flat}, its shape is {known}"
        elif message.kind == "all_reduce" and shape != known:
            yield f"{message.id} makes {shape} of value {source}, whose shape is {known}"
        elif math.prod(shape) != _numel_after(message, number, mesh, place):
            yield (
                f"{message.id} makes {shape} of value {source}, {flat} before: "
                f"{_numel_after(message, number, mesh, place)} elements"
            )


def _numel_after(message: Communicate, number: int, mesh: Mesh, place: int) -> int:
    """The number of elements of a value that this rank has after a message."""
    flat = list(message.expanded[number])
    ranks = math.prod(mesh.sizes[axis] for axis in message.axes)
    if message.gather is not None:
        pieces = message.gather_pieces[number] if message.gather_pieces else ()
        flat[message.gather] = sum(pieces) if pieces else flat[message.gather] * ranks
    if message.split is not None:
        pieces = message.split_pieces[number] if message.split_pieces else ()
        flat[message.split] = pieces[place] if pieces else flat[message.split] // ranks
    return math.prod(flat)


# ---------------------------------------------------------------------------------------- all ranks


class Meeting(NamedTuple):
    """A rank's side of a collective: fields on which all ranks must agree, and its own sizes."""

    id: str
    kind: str
    axes: tuple[int, ...]
    reduce: str
    dtypes: tuple[str, ...]
    asynchronous: bool
    after: tuple[int, ...]
    gather: int | None
    split: int | None
    expanded: tuple[tuple[int, ...], ...]
    gather_pieces: tuple[tuple[int, ...], ...]
    split_pieces: tuple[tuple[int, ...], ...]


#: All ranks must agree on this many of the first fields; the others are checked within a group.
_SAME = Meeting._fields.index("expanded")


def meetings(program: Program) -> tuple[Meeting, ...]:
    """The collectives of a rank, in order, those of each body once."""
    messages = (i for i in program.written if isinstance(i, Communicate) and i.kind != "slice")
    return tuple(
        Meeting(*(getattr(message, name) for name in Meeting._fields)) for message in messages
    )


def meeting_faults(mesh: Mesh, by_rank: Mapping[int, tuple[Meeting, ...]]) -> Iterator[str]:
    """Ranks whose collectives differ from those of the first rank, are in another order, or have
    other sizes. `by_rank` may have only some of the mesh's ranks."""
    first, *others = sorted(by_rank)
    for rank in others:
        yield from _unlike(first, by_rank[first], rank, by_rank[rank])
    if any(len(found) != len(by_rank[first]) for found in by_rank.values()):
        return
    groups = {axes: mesh.groups(axes) for axes in {meeting.axes for meeting in by_rank[first]}}
    for number, meeting in enumerate(by_rank[first]):
        for group in groups[meeting.axes]:
            members = {rank: by_rank[rank][number] for rank in group if rank in by_rank}
            yield from _group_faults(mesh, members)


def _unlike(
    first: int, mine: tuple[Meeting, ...], rank: int, other: tuple[Meeting, ...]
) -> Iterator[str]:
    """The first collective in which two ranks differ."""
    for number, (one, two) in enumerate(zip(mine, other, strict=False)):
        if one[:_SAME] != two[:_SAME]:
            name, a, b = next(
                (n, a, b) for n, a, b in zip(Meeting._fields, one, two, strict=True) if a != b
            )
            yield f"collective {number} of rank {rank} has {name} {b}, of rank {first} {a} ({one.id})"
            return
    if len(mine) != len(other):
        yield f"rank {rank} has {len(other)} collectives, rank {first} {len(mine)}"


def _group_faults(mesh: Mesh, members: Mapping[int, Meeting]) -> Iterator[str]:
    """Members of a group that disagree on the pieces, hold another piece than their own, or differ
    in the other sizes of their values."""
    if not members:
        return
    first = next(iter(members))
    one = members[first]
    for rank, meeting in members.items():
        if (meeting.gather_pieces, meeting.split_pieces) != (one.gather_pieces, one.split_pieces):
            yield f"{one.id}: rank {rank} knows of other pieces than rank {first} of its group"
            continue
        place = mesh.position(meeting.axes, rank)
        for number, flat in enumerate(meeting.expanded):
            if _others(flat, meeting.gather) != _others(one.expanded[number], one.gather):
                yield f"{one.id}: rank {rank} sends {flat}, rank {first} of its group {one.expanded[number]}"
                continue
            if meeting.gather is None:
                continue
            pieces = meeting.gather_pieces[number] if meeting.gather_pieces else ()
            due = pieces[place] if pieces else one.expanded[number][meeting.gather]
            if flat[meeting.gather] != due:
                yield f"{one.id}: rank {rank} sends a piece of {flat[meeting.gather]}, its group awaits {due}"


def _others(flat: tuple[int, ...], dim: int | None) -> tuple[int, ...]:
    """The sizes without that of sub-dim `dim`."""
    return flat if dim is None else (*flat[:dim], *flat[dim + 1 :])
