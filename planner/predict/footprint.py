"""The memory of one rank during a step, instruction by instruction, in the order in which its
executor runs them.

Program -> Footprint. A block of memory is allocated when an instruction starts and freed with the
last value in it. Views share their operand's block. A collective under way holds its buffers until
it is waited for, and frees its sources once it has packed them (`runtime.source`). This is the only
account of memory: the table, the picture and the simulated timeline all use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cost_models.memory import allocated_bytes, dtype_bytes
from planner.predict.categories import CATEGORIES, NUMBER, categories_of
from planner.predict.transfers import Buffers, buffers_of
from planner.predict.workspace import workspace
from planner.program.actions import Action, runs
from planner.program.copies import slice_copies
from planner.program.program import (
    Communicate,
    Compute,
    Instruction,
    Program,
    Update,
    given_kinds,
    in_place,
    waits_for,
    writes,
)

__all__ = ["CATEGORIES", "ActionMemory", "Footprint", "Held", "footprint", "memory_of_actions"]

#: Bytes by category.
Held = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes by category (in the order of `CATEGORIES`): before the step and, for every instruction
    of every action, at its peak and at its end."""

    start: Held
    during: tuple[Held, ...]
    after: tuple[Held, ...]

    @property
    def peak(self) -> tuple[Held, int]:
        """Bytes by category at the peak of the step, and the index of the instruction at which it
        occurs (-1: before the first)."""
        totals = [sum(self.start), *map(sum, self.during)]
        place = max(range(len(totals)), key=totals.__getitem__) - 1
        return (self.start if place < 0 else self.during[place]), place


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionMemory:
    """Bytes by category, at the peak of an action and at its end."""

    action: Action
    during: Held
    after: Held


def memory_of_actions(program: Program) -> tuple[ActionMemory, ...]:
    """The memory of a pipeline stage, action by action. Actions of one body are alike, so no more
    microbatches are walked than the first two, the last, and one for every body: the others take and
    leave what those do."""
    walk = _Walk(program)
    first = {action.body: action.microbatch for action in reversed(program.actions)}
    walked = {0, 1, program.microbatches - 1, *first.values()}
    known: dict[str, tuple[Held, Held]] = {}
    out: list[ActionMemory] = []
    held = tuple(walk.held)
    for action in program.actions:
        if action.microbatch in walked:
            before = tuple(walk.held)
            during = walk.whole_action(action)
            known[action.body] = _less(during, before), _less(tuple(walk.held), before)
        peak, change = known[action.body]
        during, held = _plus(held, peak), _plus(held, change)
        out.append(ActionMemory(action=action, during=during, after=held))
    return tuple(out)


def _plus(a: Held, b: Held) -> Held:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _less(a: Held, b: Held) -> Held:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def footprint(program: Program) -> Footprint:
    """The memory of one rank during the program."""
    walk = _Walk(program)
    start = tuple(walk.held)
    during: list[Held] = []
    after: list[Held] = []
    for alike in runs(program.actions):
        for left in range(len(alike), 0, -1):
            before, at = walk.state(), len(during)
            for held in walk.action(program.bodies[alike[0].body]):
                during.append(held)
                after.append(tuple(walk.held))
            if walk.state() == before:  # so all that are left are the same
                during += during[at:] * (left - 1)
                after += after[at:] * (left - 1)
                break
    return Footprint(start=start, during=tuple(during), after=tuple(after))


class _Block:
    """A block of memory, shared by `users` values and collectives under way."""

    __slots__ = ("category", "nbytes", "users")

    def __init__(self, nbytes: int, category: int) -> None:
        self.nbytes, self.category, self.users = nbytes, category, 1


@dataclass(slots=True)
class _UnderWay:
    message: Communicate
    sent: _Block | None
    arrives: _Block | None
    unpacked: bool


class _Walk:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.rounded = program.backend == "nccl"  # as by the caching allocator of a CUDA device
        self.categories = categories_of(program)
        self.kinds = dict(given_kinds(program))
        self.blocks = _given(program)
        self.stale = {s.value for s in program.parameters} & {
            v for i in program.written for v in writes(i)
        }
        self.waits: dict[int, _UnderWay] = {}
        self.held = [program.initial_bytes.get(name, 0) for name in CATEGORIES]
        self.total = sum(self.held)
        self.most, self.fullest = self.total, tuple(self.held)
        self.stash: dict[int, dict[int, _Block]] = {}

    def whole_action(self, action: Action) -> Held:
        """Accounts for an action of a pipeline stage, which takes up what earlier ones of its
        microbatch left; returns the bytes held at its peak."""
        self.blocks |= self.stash.pop(action.microbatch, {})
        peaks = [tuple(self.held), *self.action(self.program.bodies[action.body])]
        self._free(v for v in [one.value for one in self.program.sent] if v in self.blocks)
        left = self.program.stashed & self.blocks.keys()
        if left:
            self.stash[action.microbatch] = {v: self.blocks.pop(v) for v in left}
        return max(peaks, key=sum)

    def state(self) -> tuple[Held, frozenset[int]]:
        """The bytes held, and the values that hold them."""
        return tuple(self.held), frozenset(self.blocks)

    def action(self, body: tuple[Instruction, ...]) -> Iterator[Held]:
        """Accounts for an action; gives the bytes held at the peak of each of its instructions."""
        for index, instruction in enumerate(body, start=1):
            yield self.run(instruction, last=index == len(body))

    def run(self, instruction: Instruction, *, last: bool) -> Held:
        """Accounts for an instruction, the `last` of its action or not; returns the bytes held at
        its peak."""
        self.most = -1
        self._mark()
        for value in waits_for(instruction):
            if value in self.waits:
                self._finish(self.waits[value])
        self._free(self.stale.intersection(writes(instruction)))
        if isinstance(instruction, Communicate):
            self._communicate(instruction)
        elif isinstance(instruction, Compute):
            self._compute(instruction)
        if not isinstance(instruction, Update):
            for result, shape, dtype in zip(
                instruction.results, instruction.shapes, instruction.dtypes, strict=True
            ):
                if result is not None:
                    self.kinds[result] = shape, dtype
        self._free(instruction.frees)
        if last:
            for pending in list({id(p): p for p in self.waits.values()}.values()):
                self._finish(pending)
            self._store()
        return self.fullest

    def _store(self) -> None:
        """Lets new values of buffers replace the old ones at the end of an action."""
        for old, new in self.program.stores:
            if old in self.program.stored_by_all and new in self.blocks:
                self._drop(self.blocks[old])
                self.blocks[old] = self.blocks.pop(new)

    # --------------------------------------------------------------------------------------- blocks

    def _take(self, nbytes: int, category: int) -> _Block:
        nbytes = allocated_bytes(nbytes) if self.rounded else nbytes
        self.held[category] += nbytes
        self.total += nbytes
        self._mark()
        return _Block(nbytes, category)

    def _mark(self) -> None:
        if self.total > self.most:
            self.most, self.fullest = self.total, tuple(self.held)

    def _drop(self, block: _Block) -> None:
        block.users -= 1
        if block.users == 0:
            self.held[block.category] -= block.nbytes
            self.total -= block.nbytes

    def _share(self, value: int, block: _Block) -> None:
        block.users += 1
        self.blocks[value] = block

    def _free(self, values: Iterable[int]) -> None:
        for value in list(values):
            self.stale.discard(value)
            self._drop(self.blocks.pop(value))

    # ------------------------------------------------------------------------------------------ ops

    def _compute(self, op: Compute) -> None:
        if in_place(op) is not None:
            return
        nbytes = (
            0
            if op.kind == "view"
            else workspace(op, self.kinds, self.program.mesh.sizes, host=not self.rounded)
        )
        unused = [self._take(nbytes, NUMBER["temporaries"])] if nbytes else []
        for value, shape, dtype in zip(op.results, op.shapes, op.dtypes, strict=True):
            if value is None:
                unused.append(
                    self._take(math.prod(shape) * dtype_bytes(dtype), NUMBER["temporaries"])
                )
            elif op.kind == "view" and op.operands and self.program.value_bytes[value] == 0:
                self._share(value, self.blocks[op.operands[0]])
            else:
                self.blocks[value] = self._take(
                    self.program.value_bytes[value], self.categories[value]
                )
        for block in unused:
            self._drop(block)

    # ---------------------------------------------------------------------------------- collectives

    def _communicate(self, message: Communicate) -> None:
        ranks = math.prod(self.program.mesh.sizes[axis] for axis in message.axes)
        if message.kind == "slice" or ranks == 1:
            self._slice(message, copies=ranks > 1)
            return
        buffers = buffers_of(message, ranks, self.program.backend, in_place=self._in_place(message))
        pending = self._start(message, buffers)
        for value in message.results:
            self.waits[value] = pending
        if not message.asynchronous:
            self._finish(pending)

    def _slice(self, message: Communicate, *, copies: bool) -> None:
        for value, source in zip(message.results, message.sources, strict=True):
            if copies and (slice_copies(message) or source in message.frees):
                self.blocks[value] = self._take(
                    self.program.value_bytes[value], self.categories[value]
                )
            else:
                self._share(value, self.blocks[source])

    def _in_place(self, message: Communicate) -> bool:
        return message.sources[0] in message.frees and self.blocks[message.sources[0]].users == 1

    def _start(self, message: Communicate, buffers: Buffers) -> _UnderWay:
        category = self.categories[message.results[0]]
        packing, sent, arrives = self._take(buffers.packing, category), None, None
        if buffers.sent is not None:
            sent = self._own(buffers.sent, category, self.blocks[message.sources[0]])
        self._drop(packing)
        if buffers.received is not None:
            arrives = self._own(buffers.received, category, sent)
        return _UnderWay(message, sent, arrives, buffers.unpacked)

    def _own(self, nbytes: int, category: int, other: _Block | None) -> _Block:
        """A new block or, if `nbytes` is 0, the block `other` with one more user."""
        if nbytes or other is None:
            return self._take(nbytes, category)
        other.users += 1
        return other

    def _finish(self, pending: _UnderWay) -> None:
        if pending.sent is not None:
            self._drop(pending.sent)
        for value in pending.message.results:
            self.waits.pop(value, None)
            if pending.unpacked or pending.arrives is None:
                self.blocks[value] = self._take(
                    self.program.value_bytes[value], self.categories[value]
                )
            else:
                self._share(value, pending.arrives)
        if pending.arrives is not None:
            self._drop(pending.arrives)


def _given(program: Program) -> dict[int, _Block]:
    """The blocks of values held before the step, which count in `initial_bytes`. They are freed
    only by the values that replace them."""
    blocks = {}
    for name, values in (
        ("inputs", [state.value for state in program.inputs]),
        ("optimizer", [state.shard for state in program.parameters]),
        ("parameters", [state.value for state in program.parameters]),
    ):
        for value in values:
            blocks[value] = _Block(program.value_bytes[value], NUMBER[name])
    return blocks
