"""Orders a lowered step: early starts, buckets, prefetching, and where each value is freed.

Instructions in order of need -> the final order. Gradients' reductions are merged into flat
buckets, started when the bucket is full; gathers of one layer's parameters are merged and started
one layer ahead; a value is freed after its last use, and so is what it looks at. Invariant: a value
is written before it is read.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace
from functools import partial

from planner.graph.checking import checked
from planner.graph.layout import Mesh
from planner.lowering.early import SMALL, started_early
from planner.lowering.in_flight import bounded, continued_late
from planner.program.check_order import lost_faults, order_faults
from planner.program.program import (
    Communicate,
    Compute,
    Instruction,
    Update,
    freeing,
    reads,
    writes,
)
from planner.strategy.costing import Costing

__all__ = ["SMALL", "finish", "reads", "writes"]


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
    """The final order. `gathers` names the instructions that cast and gather parameters, with
    their layer; `alias` says which value a view looks at; `kept` outlive the step; `bucket` is
    the size of a bucket in bytes; `trained` are the values that the update writes to; `overlaps`
    says whether the device that was planned for runs large messages beside compute; `buffered`,
    whether a message under way holds memory of the device."""
    passes: tuple[tuple[str, Callable[[list[Instruction]], list[Instruction]]], ...] = (
        ("early starts", partial(started_early, overlaps=overlaps)),
        ("prefetching", lambda ordered: _prefetched(ordered, gathers, costing)),
        ("buckets", lambda ordered: _bucketed(ordered, costing, bucket)),
        ("late slices", continued_late),
        ("late reports", lambda ordered: _waited_late(ordered, alias, trained)),
        ("messages under way", bounded if buffered else list),
    )
    ordered = instructions
    for name, one in passes:
        before, ordered = ordered, one(ordered)
        _check(name, before, ordered, mesh)
    return _freed(ordered, alias, kept)


def _check(name: str, before: list[Instruction], after: list[Instruction], mesh: Mesh) -> None:
    checked(name, lambda: itertools.chain(order_faults(after, mesh), lost_faults(before, after)))


def _merge(parts: list[Communicate], costing: Costing) -> Communicate:
    """Several communications as one, on one flat buffer."""
    if len(parts) == 1:
        return parts[0]
    nbytes = sum(p.nbytes for p in parts)
    first = parts[0]
    return replace(
        first,
        id=f"{first.id}+{len(parts) - 1}",
        path=f"{first.path} +{len(parts) - 1}",
        nbytes=nbytes,
        sources=tuple(s for p in parts for s in p.sources),
        results=tuple(r for p in parts for r in p.results),
        expanded=tuple(e for p in parts for e in p.expanded),
        shapes=tuple(s for p in parts for s in p.shapes),
        gather_pieces=tuple(g for p in parts for g in p.gather_pieces),
        split_pieces=tuple(s for p in parts for s in p.split_pieces),
        dtypes=tuple(d for p in parts for d in p.dtypes),
        time=costing.communication(first.kind, first.axes, float(nbytes)),
    )


def _kind_key(part: Communicate) -> Hashable:
    """What communications must share to go in one buffer."""
    return (part.kind, part.axes, part.gather, part.split, part.reduce, part.dtypes[0])


# ---------------------------------------------------------------------------- what is only reported


def _waited_late(
    instructions: list[Instruction], alias: dict[int, int], trained: frozenset[int]
) -> list[Instruction]:
    """What only the loss needs of a reduced value is done at the end of the step, so that
    backward does not wait for it; what reads a parameter for it, or is read by what does, just
    before the update writes to the parameter."""
    needed = _needed(instructions)
    waiting: set[int] = set()
    late: list[Instruction] = []
    out: list[Instruction] = []
    for instruction in instructions:
        written = set(writes(instruction))
        reported = bool(written) and not needed & written and instruction.phase != "update"
        if reported and waiting & set(reads(instruction)):
            waiting |= written
            late.append(instruction)
            continue
        if reported and isinstance(instruction, Communicate) and instruction.asynchronous:
            waiting |= written
        out.append(instruction)
    at = next(
        (place for place, instruction in enumerate(out) if isinstance(instruction, Update)),
        len(out),
    )
    before, after = _parted(late, _of_parameters(instructions, alias, trained))
    return [*out[:at], *before, *out[at:], *after]


def _of_parameters(
    instructions: list[Instruction], alias: dict[int, int], trained: frozenset[int]
) -> set[int]:
    """The values that may share memory with a parameter (a slice may be a look), and what is
    under way from it."""
    found = set(trained)
    for instruction in instructions:
        looks = isinstance(instruction, Communicate) and (
            instruction.asynchronous or instruction.kind == "slice"
        )
        started = looks and found.intersection(reads(instruction))
        found.update(value for value in writes(instruction) if started or alias.get(value) in found)
    return found


def _parted(late: list[Instruction], held: set[int]) -> tuple[list[Instruction], list[Instruction]]:
    """Those that read a value of `held` or are read by one that does, and the others."""
    before: list[Instruction] = []
    after: list[Instruction] = []
    wanted = set(held)
    for instruction in reversed(late):
        first = wanted.intersection(reads(instruction)) or wanted.intersection(writes(instruction))
        (before if first else after).append(instruction)
        if first:
            wanted.update(reads(instruction))
    return before[::-1], after[::-1]


def _needed(instructions: list[Instruction]) -> set[int]:
    """The values that training needs; what else is made is only reported."""
    needed: set[int] = set()
    for instruction in reversed(instructions):
        if (
            isinstance(instruction, Update)
            or needed & set(writes(instruction))
            or instruction.phase == "update"
        ):
            needed.update(reads(instruction))
    return needed


# ---------------------------------------------------------------------------- gathers of parameters


def _prefetched(
    instructions: list[Instruction], gathers: dict[str, str], costing: Costing
) -> list[Instruction]:
    """One merged gather a layer and phase, and the casts that it needs, started where the layer
    before it is first needed. Of a chain of gathers, each step starts a layer before the next
    one: it is done by then, so that compute does not wait for it."""
    groups: dict[str, list[Instruction]] = {}
    needed: dict[str, int] = {}
    for position, instruction in _movable(instructions, gathers):
        group = gathers[instruction.id]
        groups.setdefault(group, []).append(instruction)
        needed.setdefault(group, position)
    starts: dict[int, list[Instruction]] = defaultdict(list)
    order = sorted(groups, key=needed.__getitem__)
    for index, group in enumerate(order):
        for left, parts in _by_steps_left(groups[group]):
            casts = [part for part in parts if isinstance(part, Compute)]
            messages = [part for part in parts if isinstance(part, Communicate)]
            start = index - 1 - left
            starts[0 if start < 0 else needed[order[start]]] += [
                *casts,
                *_merged(messages, costing),
            ]
    moved = {part.id for parts in groups.values() for part in parts}
    out: list[Instruction] = []
    for position, instruction in enumerate(instructions):
        out += starts.get(position, [])
        if instruction.id not in moved:
            out.append(instruction)
    return out


def _movable(
    instructions: list[Instruction], gathers: dict[str, str]
) -> Iterator[tuple[int, Instruction]]:
    """The gathers, and the casts that they send, and their positions, where nothing before them
    is made in the step but such casts and, before a gather, gathers for the same layer and
    phase."""
    written = {value for instruction in instructions for value in writes(instruction)}
    sent = {
        value
        for i in instructions
        if isinstance(i, Communicate) and i.id in gathers
        for value in i.sources
    }
    ready: dict[int, str] = {}  # value -> the layer and phase that may read it, "" if all may
    for position, instruction in enumerate(instructions):
        group = gathers.get(instruction.id)
        allowed = ("",) if isinstance(instruction, Compute) else ("", group)
        if group is None or any(
            value in written and ready.get(value) not in allowed for value in reads(instruction)
        ):
            continue
        if isinstance(instruction, Compute):
            if sent.isdisjoint(writes(instruction)):
                continue  # it is read where it is made
            ready.update(dict.fromkeys(writes(instruction), ""))
        elif instruction.kind != "slice":
            ready.update(dict.fromkeys(writes(instruction), group))
        elif any(ready.get(value) for value in reads(instruction)):
            continue  # what it cuts is not there before it is needed
        yield position, instruction


def _by_steps_left(parts: list[Instruction]) -> list[tuple[int, list[Instruction]]]:
    """The parts of chains by the messages that follow in the chain, the most first."""
    left: dict[int, int] = {}  # value -> the messages that it goes through
    found: dict[int, list[Instruction]] = defaultdict(list)
    for part in reversed(parts):
        count = max((left.get(value, 0) for value in writes(part)), default=0)
        sends = isinstance(part, Communicate)
        for value in reads(part):
            left[value] = max(left.get(value, 0), count + sends)
        found[count if sends else max(0, count - 1)].append(part)  # a cast goes with what sends it
    return [(count, found[count][::-1]) for count in sorted(found, reverse=True)]


#: Gathers of this many bytes and more go alone. Several in one buffer are copied into it and out of
#: its rows, which takes longer than the latency that one message less saves, most of which hides:
#: on eight H100 some 13 us against 20. Alone, pieces along the leading sub-dim are not copied at
#: all.
ALONE = 16 * 1024 * 1024


def _merged(parts: Iterable[Communicate], costing: Costing) -> list[Instruction]:
    kinds: dict[Hashable, list[Communicate]] = defaultdict(list)
    for part in parts:
        kinds[_kind_key(part), part.id if part.nbytes >= ALONE else ""].append(part)
    return [_merge(same, costing) for same in kinds.values()]


# ---------------------------------------------------------------------------------------- gradients


class _Buckets:
    """Open buckets, and instructions that wait for one; all are written out in an order that
    keeps writes before reads."""

    def __init__(self, costing: Costing, size: int) -> None:
        self.costing, self.size = costing, size
        self.out: list[Instruction] = []
        self.open: dict[Hashable, list[Communicate]] = {}
        self.following: dict[
            Hashable, list[Communicate]
        ] = {}  # the next step of what an open bucket sends
        self.pending: dict[
            int, Hashable
        ] = {}  # value -> the open bucket that will write it, or what it is made of
        self.riding: dict[
            Hashable, list[Communicate]
        ] = {}  # what goes along with the last bucket of its kind
        self.deferred: list[Instruction] = []
        self.late: set[int] = set()

    def add(self, part: Communicate) -> None:
        """Puts a communication in its bucket, or sends it alone if it fills one; the second step
        of a chain waits for the bucket of the first."""
        if any(source in self.late for source in part.sources):
            self._flush_deferred()
        first = next(
            (self.pending[source] for source in part.sources if source in self.pending), None
        )
        if (
            first is None and part.nbytes >= self.size
        ):  # with others in one buffer, all of them would be copied
            self.out.append(part)
            return
        key = _kind_key(part) if first is None else first
        for result in part.results:
            self.pending[result] = key
        if first is not None:
            self.following.setdefault(key, []).append(part)
            return
        self.open.setdefault(key, []).append(part)
        if sum(p.nbytes for p in self.open[key]) >= self.size:
            self.flush(key, last=False)

    def ride(self, part: Communicate) -> None:
        """Keeps a message for the last bucket of its kind."""
        self.riding.setdefault(_kind_key(part), []).append(part)
        self.pending.update(dict.fromkeys(part.results, _kind_key(part)))

    def defer(self, instruction: Instruction) -> None:
        """Keeps an instruction until the update."""
        self.deferred.append(instruction)
        self.late.update(writes(instruction))

    def waits(self, instruction: Instruction) -> bool:
        """Whether the instruction reads what is not written yet."""
        return any(value in self.pending or value in self.late for value in reads(instruction))

    def flush(self, key: Hashable, *, last: bool = True) -> None:
        """Sends a bucket, with what rides along if it is the last; the next steps of what it
        sent go to buckets of their own."""
        parts, following = self.open.pop(key, []), self.following.pop(key, [])
        parts += self.riding.pop(key, []) if last else []
        if parts:
            self.out.append(_merge(parts, self.costing))
        for part in (*parts, *following):
            for result in part.results:
                self.pending.pop(result, None)
        for part in following:
            self.add(part)

    def _settle(self, value: int) -> None:
        while value in self.pending:
            self.flush(self.pending[value])

    def _flush_deferred(self) -> None:
        waiting, self.deferred, self.late = self.deferred, [], set()
        for instruction in waiting:
            for value in reads(instruction):
                self._settle(value)
            self.out.append(instruction)

    def flush_all(self) -> None:
        """Sends all that is open, then what waited for it."""
        while self.open or self.riding:
            self.flush(next(iter(self.open or self.riding)))
        self._flush_deferred()


def _riders(instructions: list[Instruction]) -> set[str]:
    """The reductions of what is only reported, where gradients are sent in the same way."""
    messages = [i for i in instructions if isinstance(i, Communicate) and i.kind == "all_reduce"]
    sent, needed = {_kind_key(i) for i in messages if i.phase == "update"}, _needed(instructions)
    return {i.id for i in messages if not needed & set(i.results) and _kind_key(i) in sent}


def _bucketed(instructions: list[Instruction], costing: Costing, size: int) -> list[Instruction]:
    """Communications of the update phase in buckets: a bucket starts when it is full, and all
    before the update. What is only reported (the loss) goes along with the last bucket of its
    kind: one message less."""
    buckets = _Buckets(costing, size)
    riding = _riders(instructions)
    for instruction in instructions:
        if (
            isinstance(instruction, Communicate)
            and instruction.id in riding
            and not buckets.waits(instruction)
        ):
            buckets.ride(instruction)
        elif (
            isinstance(instruction, Communicate)
            and instruction.phase == "update"
            and instruction.asynchronous
        ):
            buckets.add(instruction)
        elif isinstance(instruction, Update):
            buckets.flush_all()
            buckets.out.append(instruction)
        elif buckets.waits(instruction):
            buckets.defer(instruction)
        else:
            buckets.out.append(instruction)
    buckets.flush_all()
    return buckets.out


# ------------------------------------------------------------------------------------------- memory


def _freed(
    instructions: list[Instruction], alias: dict[int, int], kept: set[int]
) -> tuple[Instruction, ...]:
    """Each value freed after its own last use and that of every view of it."""

    def base(value: int) -> int:
        while value in alias:
            value = alias[value]
        return value

    last: dict[int, int] = {}
    for position, instruction in enumerate(instructions):
        for value in (*reads(instruction), *writes(instruction)):
            last[value] = last[base(value)] = position
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
