"""Finds stacks of like blocks in a graph, for a text that does not grow with depth.

Graph -> repeats: runs of nodes that follow one another and do the same, each on the values of its
own block. Backward's blocks run in the reverse order and read what forward's wrote. The first and
the last block of a run may read other things from outside than those between do.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.dims.ties import layer_of, pattern_of
from planner.graph.graph import Graph, Node, Serial, map_refs

__all__ = ["Repeat", "repeats"]

#: Fewer blocks, or blocks of fewer nodes, are not worth a line that says so.
_BLOCKS, _NODES = 3, 3


@dataclass(frozen=True, slots=True)
class Repeat:
    """`count` blocks of `length` nodes each, the first from node `start` on."""

    start: int
    length: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.length * self.count

    def block(self, number: int) -> range:
        return range(self.start + number * self.length, self.start + (number + 1) * self.length)


def repeats(graph: Graph) -> tuple[Repeat, ...]:
    """The stacks of the graph in its order, the longest first found; none overlaps another."""
    numbers: dict[Hashable, int] = {}
    words = np.array(
        [numbers.setdefault(_word(graph, node), len(numbers)) for node in graph.nodes],
        dtype=np.int64,
    )
    found = tuple(sorted(_runs(graph, words, 0, len(words)), key=lambda run: run.start))
    homes = _Homes(graph, found)
    return tuple(run for number, run in enumerate(found) if homes.alike(number))


def _word(graph: Graph, node: Node) -> Hashable:
    """A key of what a node does, independent of its block."""

    def read(value: int) -> str:
        return pattern_of(graph.values[value].name) if graph.values[value].writer is None else "%"

    arguments = (
        repr(_without_serials(map_refs((node.args, node.kwargs), read)))
        if node.operands
        else node.args
    )
    return (
        node.op,
        node.phase,
        pattern_of(node.path),
        repr(arguments),
        node.result_shapes,
        node.result_dtypes,
    )


def _without_serials(args: Any) -> Any:
    """Nested arguments, each number that tells like ops of a step apart replaced by one sign."""
    if isinstance(args, tuple):
        return tuple(_without_serials(item) for item in args)
    return "#" if isinstance(args, Serial) else args


def _runs(graph: Graph, words: NDArray[np.int64], low: int, high: int) -> Iterator[Repeat]:
    """The run that covers most nodes in [low, high), and then those before and after it."""
    best = max(
        (run for run in _candidates(words[low:high])),
        key=lambda run: (run.length * run.count, -run.length),
        default=None,
    )
    if best is None:
        return
    spare = _length_of_run(words, low + best.start, best.length, high) - best.length * best.count
    start = low + best.start + _begins(graph, low + best.start, spare)
    run = Repeat(start, best.length, best.count)
    yield from _runs(graph, words, low, run.start)
    yield run
    yield from _runs(graph, words, run.end, high)


def _candidates(words: NDArray[np.int64]) -> Iterator[Repeat]:
    """For each length of a block, the longest run of such blocks."""
    for length in range(_NODES, len(words) // _BLOCKS + 1):
        same = words[:-length] == words[length:]
        if np.count_nonzero(same) < length * (_BLOCKS - 1):
            continue
        edges = np.flatnonzero(np.diff(same.astype(np.int8), prepend=0, append=0))
        starts, lasting = edges[::2], edges[1::2] - edges[::2]
        longest = int(lasting.argmax())
        count = int(lasting[longest]) // length + 1
        if count >= _BLOCKS:
            yield Repeat(int(starts[longest]), length, count)


def _length_of_run(words: NDArray[np.int64], start: int, length: int, high: int) -> int:
    """How many nodes from `start` on belong to the run: the first block, and all nodes that equal
    the one `length` before them."""
    end = start + length
    while end < high and words[end] == words[end - length]:
        end += 1
    return end - start


def _begins(graph: Graph, start: int, spare: int) -> int:
    """By how many nodes, up to `spare`, a run must begin later so that blocks begin where a layer
    does."""
    paths = [layer_of(graph.nodes[at].path) for at in range(max(0, start - 1), start + spare + 1)]
    paths = ["", *paths] if start == 0 else paths
    return next(
        (at for at, (a, b) in enumerate(itertools.pairwise(paths)) if a != b and b != ""), 0
    )


class _Homes:
    """The run, the block and the place in it at which each value is written."""

    def __init__(self, graph: Graph, runs: tuple[Repeat, ...]) -> None:
        self.graph, self.runs = graph, runs
        self.of: dict[int, tuple[int, int, Hashable]] = {}
        for number, run in enumerate(runs):
            for block in range(run.count):
                for place, index in enumerate(run.block(block)):
                    for result, value in enumerate(graph.nodes[index].results):
                        if value is not None:
                            self.of[value] = (number, block, (place, result))

    def alike(self, number: int) -> bool:
        """Whether the blocks of a run read corresponding values."""
        run = self.runs[number]
        for block in range(run.count - 1):
            ends = block in (0, run.count - 2)
            for one, two in zip(run.block(block), run.block(block + 1), strict=True):
                pairs = zip(
                    self.graph.nodes[one].operands, self.graph.nodes[two].operands, strict=True
                )
                if not all(
                    self._like(a, b) or (ends and self._outside(number, a, b)) for a, b in pairs
                ):
                    return False
        return True

    def _like(self, a: int, b: int) -> bool:
        """Whether `a`, read by a block, corresponds to `b`, read by the next one: it is the same,
        or the value that the next block of some run wrote at the same place."""
        if a == b or (self.graph.values[a].writer is None and self.graph.values[b].writer is None):
            return True
        one, two = self.of.get(a), self.of.get(b)
        return (
            one is not None
            and two is not None
            and (one[0], one[2]) == (two[0], two[2])
            and abs(one[1] - two[1]) == 1
        )

    def _outside(self, number: int, a: int, b: int) -> bool:
        return any(self.of.get(value, (None,))[0] != number for value in (a, b))
