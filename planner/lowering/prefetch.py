"""Gathers of parameters: one layer's are merged and started one layer ahead."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator

from planner.lowering.merging import kind_key, merge
from planner.program.program import Communicate, Compute, Instruction, reads, writes
from planner.strategy.costing import Costing

__all__ = ["ALONE", "prefetched"]

#: Gathers of this many bytes and more are sent alone. Several in one buffer are copied into it and
#: out of its rows, which takes longer than the latency saved, most of which is hidden anyway: on
#: eight H100, some 13 us against 20. Alone, pieces along the leading sub-dim are not
#: copied at all.
ALONE = 16 * 1024 * 1024


def prefetched(
    instructions: list[Instruction], gathers: dict[str, str], costing: Costing
) -> list[Instruction]:
    """The instructions with one merged gather per layer and phase, and the casts that it needs,
    started where the layer before it is first needed. Each step of a chain of gathers starts a
    layer before the next one, so that it is done by then and compute does not wait for it."""
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
                *_merged_by_kind(messages, costing),
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
    """The gathers, and the casts whose results they send, with their positions; only those that
    depend on nothing made in the step except such casts and gathers for the same layer and
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
                continue  # it is read in the place where it is made
            ready.update(dict.fromkeys(writes(instruction), ""))
        elif instruction.kind != "slice":
            ready.update(dict.fromkeys(writes(instruction), group))
        elif any(ready.get(value) for value in reads(instruction)):
            continue  # its source is not there earlier
        yield position, instruction


def _by_steps_left(parts: list[Instruction]) -> list[tuple[int, list[Instruction]]]:
    """The parts of chains by the number of messages that follow in the chain, most first."""
    left: dict[int, int] = {}  # value -> the messages that it goes through
    found: dict[int, list[Instruction]] = defaultdict(list)
    for part in reversed(parts):
        count = max((left.get(value, 0) for value in writes(part)), default=0)
        sends = isinstance(part, Communicate)
        for value in reads(part):
            left[value] = max(left.get(value, 0), count + sends)
        found[count if sends else max(0, count - 1)].append(part)  # a cast goes with its gather
    return [(count, found[count][::-1]) for count in sorted(found, reverse=True)]


def _merged_by_kind(parts: Iterable[Communicate], costing: Costing) -> list[Instruction]:
    kinds: dict[Hashable, list[Communicate]] = defaultdict(list)
    for part in parts:
        kinds[kind_key(part), part.id if part.nbytes >= ALONE else ""].append(part)
    return [merge(same, costing) for same in kinds.values()]
