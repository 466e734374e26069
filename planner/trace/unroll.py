"""The graph of whole stacks of blocks, from a graph with shortened stacks.

Graph of five blocks of a stack -> graph of all: if the second, third and fourth block are the same,
the third is repeated. The result equals the graph of tracing the whole module, value for value: a
rank traces the whole, and its hash must be the plan's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from planner.graph.graph import Graph, Node, Parameter, Ref, Serial, Value, result_name
from planner.trace.blocks import Homes, NotAlike, Place, replaced, segments_of
from planner.trace.stacks import Stack

__all__ = ["Given", "unroll"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A parameter or buffer of the whole module."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class _At:
    """Block `block` of stack number `stack`: 0 is the second block of the shortened graph, the last
    is its fourth, and the others are copies of its third."""

    stack: int
    block: int


def unroll(graph: Graph, stacks: tuple[Stack, ...], given: tuple[Given, ...]) -> Graph | None:
    """The graph with every stack at its full length; `given` are the whole module's parameters and
    buffers, in the order of the step's arguments. None if the blocks of a stack are not the
    same."""
    try:
        homes = [Homes(graph, segments_of(graph, stack)) for stack in stacks]
        for one in homes:
            one.check()
        return _Unroller(graph, homes, given).graph()
    except NotAlike:
        return None


class _Unroller:
    """Writes the whole graph, node by node in the order of execution."""

    def __init__(self, graph: Graph, homes: list[Homes], given: tuple[Given, ...]) -> None:
        self.old, self.homes, self.given = graph, homes, given
        self.nodes: list[Node] = []
        self.values: list[Value] = []
        self.outside: dict[int, int] = {}  # by old value
        self.inner: dict[tuple[_At, Place], int] = {}
        self.counts: Counter[str] = Counter()

    def graph(self) -> Graph:
        """The whole graph."""
        self._name_given()
        copies = self._copies()
        for node in self.old.nodes:
            for at, start, end in copies.get(node.index, ()):
                for index in range(start, end):
                    self._emit(self.old.nodes[index], at)
            self._emit(node, self._at(node))
        return self._whole()

    # --------------------------------------------------------------------------------------- blocks

    def _last(self, stack: int) -> int:
        return self.homes[stack].stack.num_copies + 2

    def _template(self, at: _At) -> int:
        """The number of the compared block of which a block is a copy."""
        return 0 if at.block == 0 else 2 if at.block == self._last(at.stack) else 1

    def _at(self, node: Node) -> _At | None:
        """The block that a node of the shortened graph is in, if it is a compared one."""
        for stack, homes in enumerate(self.homes):
            block = homes.nodes.get(node.index)
            if block is not None:
                return _At(stack, self._last(stack) if block == 2 else block)
        return None

    def _copies(self) -> dict[int, list[tuple[_At, int, int]]]:
        """The inserted blocks, by the old node before which they go, each with the range of nodes
        that it copies."""
        found: dict[int, list[tuple[_At, int, int]]] = {}
        for stack, homes in enumerate(self.homes):
            blocks = range(2, self._last(stack))
            forward, backward = homes.segments.forward[1], homes.segments.backward[1]
            found[forward[1]] = [(_At(stack, block), *forward) for block in blocks]
            found[backward[0]] = [(_At(stack, block), *backward) for block in reversed(blocks)]
        return found

    # ---------------------------------------------------------------------------------------- names

    def _name_given(self) -> None:
        """Numbers the whole module's parameters and buffers, and the values from outside."""
        traced = {v.name: v.id for v in self.old.values if v.kind in ("parameter", "buffer")}
        old = {self._renamed(name, None): value for name, value in traced.items()}
        copies = {
            self._renamed(name, at): (at, place, value)
            for name, value, at, place in self._copied(traced)
        }
        for one in self.given:
            new = len(self.values)
            if one.name in old:
                like = old[one.name]
                self._keep(like, new)
            elif one.name in copies:
                at, place, like = copies[one.name]
                self.inner[at, place] = new
            else:
                raise NotAlike
            self.values.append(
                replace(
                    self.old.values[like], id=new, name=one.name, shape=one.shape, dtype=one.dtype
                )
            )
        for value in self.old.values:
            if value.kind in ("input", "key", "scale"):
                self._keep(value.id, len(self.values))
                self.values.append(replace(value, id=len(self.values)))

    def _copied(self, traced: Mapping[str, int]) -> Iterator[tuple[str, int, _At, Place]]:
        """The parameters and buffers of the third blocks, once for each copy."""
        for name, value in traced.items():
            for stack, homes in enumerate(self.homes):
                block, place = homes.values.get(value, (None, ("", 0)))
                if block == 1:
                    yield from (
                        (name, value, _At(stack, copy), place)
                        for copy in range(2, self._last(stack))
                    )

    def _keep(self, old: int, new: int) -> None:
        self.outside[old] = new
        for stack, homes in enumerate(self.homes):
            if old in homes.values:
                block, place = homes.values[old]
                self.inner[_At(stack, self._last(stack) if block == 2 else block), place] = new

    def _renamed(self, name: str, at: _At | None) -> str:
        """A name in the shortened graph, translated to the whole; inner containers are renamed
        first."""
        for stack, homes in reversed(list(enumerate(self.homes))):
            by = at.block - self._template(at) if at is not None and at.stack == stack else None
            name = homes.stack.renamed(name, by=by)
        return name

    # ---------------------------------------------------------------------------------------- nodes

    def _emit(self, node: Node, at: _At | None) -> None:
        index, name = len(self.nodes), result_name(node.op, self.counts)
        results: list[int | None] = []
        for old in node.results:
            if old is None:
                results.append(None)
                continue
            new = len(self.values)
            self.values.append(replace(self.old.values[old], id=new, name=name, writer=index))
            results.append(new)
            if at is None:
                self.outside[old] = new
            else:
                self.inner[at, self.homes[at.stack].values[old][1]] = new
        args, kwargs = replaced(
            (node.args, node.kwargs),
            lambda ref: Ref(self._value(ref, at)),
            lambda number: Serial(self._serial(number, at)),
        )
        path = self._renamed(node.path, at)
        self.nodes.append(
            Node(
                index=index,
                op=node.op,
                args=args,
                kwargs=kwargs,
                results=tuple(results),
                result_shapes=node.result_shapes,
                result_dtypes=node.result_dtypes,
                phase=node.phase,
                path=path,
                checkpoint=node.checkpoint,
            )
        )

    def _value(self, old: int, at: _At | None) -> int:
        """The value that block `at` (None: outside all blocks) reads if the shortened graph reads
        `old`."""
        for stack, homes in enumerate(self.homes):
            home = homes.values.get(old)
            if home is not None:
                return self.inner[self._seen(stack, home[0], at), home[1]]
        return self.outside[old]

    def _seen(self, stack: int, block: int, at: _At | None) -> _At:
        """The block to which `at` refers if its template refers to the compared block `block`."""
        if at is not None and at.stack == stack:
            return _At(stack, at.block + block - self._template(at))
        return _At(stack, self._last(stack) if block == 2 else block)

    def _serial(self, old: int, at: _At | None) -> int:
        """The new serial number of a mask: these count up in the order of forward."""
        for stack, homes in enumerate(self.homes):
            home = homes.serials.get(old)
            if home is not None:
                first = homes.by_serial[0, home[1]]
                return self._moved(first) + self._seen(stack, home[0], at).block * homes.stride
        return self._moved(old)

    def _moved(self, number: int) -> int:
        """The new serial number of a mask outside the copies: moved on by those of all blocks
        inserted before it."""
        more = 0
        for homes in self.homes:
            if homes.fourth_serial is not None and number >= homes.fourth_serial:
                more += homes.stack.num_copies * homes.stride
        return number + more

    # ------------------------------------------------------------------------------------ the graph

    def _whole(self) -> Graph:
        made = self._made({p.value: p.gradient for p in self.old.parameters})
        kept = self._made(dict(self.old.updates))
        kinds = {
            kind: tuple(v.id for v in self.values if v.kind == kind)
            for kind in ("parameter", "input", "buffer")
        }
        return Graph(
            nodes=tuple(self.nodes),
            values=tuple(self.values),
            inputs=kinds["input"],
            buffers=kinds["buffer"],
            parameters=tuple(
                Parameter(name=self.values[v].name, value=v, gradient=made[v])
                for v in kinds["parameter"]
            ),
            loss=None if self.old.loss is None else self._value(self.old.loss, None),
            updates=tuple(sorted(kept.items())),
            reported=tuple((name, self._value(value, None)) for name, value in self.old.reported),
        )

    def _made(self, pairs: Mapping[int, int]) -> dict[int, int]:
        """Pairs of given values and their gradients or new contents, in new numbers."""
        out: dict[int, int] = {}
        for value, made in pairs.items():
            home = next(
                ((s, h.values[value]) for s, h in enumerate(self.homes) if value in h.values), None
            )
            if home is None:
                out[self.outside[value]] = self._value(made, None)
                continue
            stack, (block, place) = home
            blocks = {0: [0], 1: list(range(1, self._last(stack))), 2: [self._last(stack)]}[block]
            for at in (_At(stack, one) for one in blocks):
                out[self.inner[at, place]] = self._value(made, at)
        return out
