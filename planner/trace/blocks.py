"""Finds the blocks of a shortened stack in its graph, and checks that they are the same.

Graph, stack -> `Homes`. In the order of execution, a block's forward extends from its first op to
the next block's first op, and its backward likewise. The second, third and fourth block must have
the same ops on the same values, relative to each block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from planner.graph.graph import Graph, Node, Ref, Serial
from planner.trace.stacks import Stack

__all__ = ["INNER", "Homes", "NotAlike", "Place", "Segments", "replaced", "segments_of"]

#: The blocks that are compared: the second, the third, which is repeated, and the fourth.
INNER = (0, 1, 2)
REPEATED = 1

#: The place of something in a block: (forward, backward or given; index there).
Place = tuple[str, int]


class NotAlike(Exception):
    """The blocks are not the same, or an op outside reads a repeated one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """The nodes of the compared blocks: `forward[b]` and `backward[b]` as half-open ranges."""

    stack: Stack
    forward: tuple[tuple[int, int], ...]
    backward: tuple[tuple[int, int], ...]

    def ranges(self) -> Iterator[tuple[str, int, tuple[int, int]]]:
        for block in INNER:
            yield "forward", block, self.forward[block]
            yield "backward", block, self.backward[block]


def segments_of(graph: Graph, stack: Stack) -> Segments:
    """The ranges of the blocks. Raises NotAlike if they do not run one after another, and backward
    in reverse order."""
    numbers = (stack.start, *stack.inner, stack.start + 4)
    first = {phase: _first_nodes(graph, stack, phase) for phase in ("forward", "backward")}
    if any(set(numbers) - set(found) for found in first.values()):
        raise NotAlike
    forward = [first["forward"][n] for n in numbers]
    backward = [first["backward"][n] for n in numbers]
    if (
        forward != sorted(forward)
        or backward != sorted(backward, reverse=True)
        or forward[-1] > backward[-1]
    ):
        raise NotAlike
    found = Segments(
        stack=stack,
        forward=tuple((forward[b], forward[b + 1]) for b in (1, 2, 3)),
        backward=tuple((backward[b], backward[b - 1]) for b in (1, 2, 3)),
    )
    if any(
        graph.nodes[n].phase != phase for phase, _, span in found.ranges() for n in range(*span)
    ):
        raise NotAlike
    return found


def _first_nodes(graph: Graph, stack: Stack, phase: str) -> dict[int, int]:
    found: dict[int, int] = {}
    for node in graph.nodes:
        block = stack.block_of(node.path) if node.phase == phase else None
        if block is not None:
            found.setdefault(block, node.index)
    return found


class Homes:
    """The compared block that a value, a parameter or a mask's serial number belongs to, and its
    place there."""

    def __init__(self, graph: Graph, segments: Segments) -> None:
        self.graph, self.segments, self.stack = graph, segments, segments.stack
        self.values: dict[int, tuple[int, Place]] = {}
        self.serials: dict[int, tuple[int, Place]] = {}
        self.nodes: dict[int, int] = {}  # by node, its block
        for phase, block, span in segments.ranges():
            made, counted = 0, 0
            for index in range(*span):
                self.nodes[index] = block
                for value in graph.nodes[index].results:
                    if value is not None:
                        self.values[value] = block, (phase, made)
                        made += 1
                for serial in _serials(graph.nodes[index].args):
                    if serial not in self.serials:
                        self.serials[serial] = block, (phase, counted)
                        counted += 1
        self._given()
        self.by_serial = {home: number for number, home in self.serials.items()}

    def _given(self) -> None:
        counts: Counter[int] = Counter()
        for value in self.graph.values:
            number = (
                self.stack.block_of(value.name) if value.kind in ("parameter", "buffer") else None
            )
            if number in self.stack.inner:
                block = self.stack.inner.index(number)
                self.values[value.id] = block, ("given", counts[block])
                counts[block] += 1

    def check(self) -> None:
        """Raises NotAlike unless the blocks are the same and only their neighbours read them."""
        for spans in (self.segments.forward, self.segments.backward):
            _check_same(
                [
                    [self._word(self.graph.nodes[n], block) for n in range(*spans[block])]
                    for block in INNER
                ]
            )
        _check_same(
            [
                [
                    self._given_word(v, block)
                    for v, (b, (kind, _)) in self.values.items()
                    if b == block and kind == "given"
                ]
                for block in INNER
            ]
        )
        self._check_gradients()
        self._check_outside()
        assert self.stride >= 0

    def _word(self, node: Node, block: int) -> Any:
        """Everything about a node, with its operands as seen from its block."""
        path = (
            self.stack.renamed(node.path, by=-self.stack.inner[block])
            if self._is_inner(node.path)
            else node.path
        )
        arguments = replaced(
            (node.args, node.kwargs),
            lambda ref: self._relative(self.values, ref, block),
            lambda s: self._relative(self.serials, s, block),
        )
        results = tuple(r is None for r in node.results)
        made = results, node.result_shapes, node.result_dtypes
        return node.op, arguments, *made, path, node.checkpoint

    def _given_word(self, value: int, block: int) -> Any:
        found = self.graph.values[value]
        return (
            self.stack.renamed(found.name, by=-self.stack.inner[block]),
            found.shape,
            found.dtype,
            found.kind,
        )

    @cached_property
    def stride(self) -> int:
        """How many serial numbers of masks a block takes."""
        places = {place for _, place in self.by_serial}
        strides = {
            self.by_serial[b + 1, place] - self.by_serial[b, place]
            for place in places
            for b in (0, 1)
        }
        if len(strides) > 1:
            raise NotAlike
        return next(iter(strides), 0)

    @cached_property
    def fourth_serial(self) -> int | None:
        """The first serial number of the fourth block."""
        return min(
            (number for number, (block, _) in self.serials.items() if block == 2), default=None
        )

    def _is_inner(self, name: str) -> bool:
        return self.stack.block_of(name) in self.stack.inner

    def _relative(self, homes: Mapping[int, tuple[int, Place]], what: int, block: int) -> Any:
        home = homes.get(what)
        return ("outside", what) if home is None else (home[0] - block, *home[1])

    def _check_gradients(self) -> None:
        pairs = [(p.value, p.gradient) for p in self.graph.parameters] + list(self.graph.updates)
        seen: dict[int, list[Any]] = {block: [] for block in INNER}
        for value, made in pairs:
            if value in self.values:
                block, place = self.values[value]
                seen[block].append((place, self._relative(self.values, made, block)))
            elif made in self.values and self.values[made][0] == REPEATED:
                raise NotAlike
        _check_same([seen[block] for block in INNER])

    def _check_outside(self) -> None:
        """Raises NotAlike if an op outside the compared blocks reads one of them other than the
        adjacent one."""
        first, last = self.segments.forward[0][0], self.segments.backward[0][1]
        for node in self.graph.nodes:
            if node.index in self.nodes:
                continue
            before = node.index < first or node.index >= last
            for value in node.operands:
                block = self.values.get(value, (None,))[0]
                if block is not None and block != (0 if before else 2):
                    raise NotAlike
        if any(v in self.values for _, v in self.graph.told):
            raise NotAlike


def _check_same(words: list[Any]) -> None:
    """Raises NotAlike unless three blocks' words are equal. References of the second block to the
    block before it, and of the fourth to the one after it, are not compared: the third shows
    both."""
    if not (_same(words[0], words[1], -1) and _same(words[2], words[1], 1)):
        raise NotAlike


def _same(one: Any, other: Any, edge: int) -> bool:
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        if one[:1] == ("outside",) and len(other) == 3 and other[0] == edge:
            return True
        return len(one) == len(other) and all(
            _same(a, b, edge) for a, b in zip(one, other, strict=True)
        )
    return type(one) is type(other) and bool(one == other)


def replaced(args: Any, ref: Any, serial: Any) -> Any:
    """Nested arguments with refs and serial numbers replaced."""
    if isinstance(args, Ref):
        return ref(args.id)
    if isinstance(args, Serial):
        return serial(args.number)
    return tuple(replaced(item, ref, serial) for item in args) if isinstance(args, tuple) else args


def _serials(args: Any) -> Iterator[int]:
    for item in args if isinstance(args, tuple) else (args,):
        if isinstance(item, Serial):
            yield item.number
        elif isinstance(item, tuple):
            yield from _serials(item)
