"""The graphs of the stages of a pipeline.

Graph of a microbatch, stages of its nodes -> one graph for each stage. A value that another stage
makes comes in as a value of kind `received`, which the op `shardwright.receive` reads; what another
stage reads leaves by `shardwright.send`. A value comes from the nearest stage that has it: one that
many stages read is sent on from stage to stage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from planner.dims.subdims import SubDims, infer
from planner.graph.graph import Graph, Node, Ref, Value, map_refs, renumbered
from planner.graph.sections import RECEIVE, SEND
from planner.stages.assign import Assigned, assigned
from planner.stages.tied import is_late, with_shares

__all__ = ["Crossing", "Cut", "StageGraph", "stage_graphs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """A value that stage `source` sends to stage `target`. `phase`: `forward` or `backward`, in
    every microbatch, or `update`, once a step. `name` says what it is: the module that makes it and
    its op."""

    number: int
    source: int
    target: int
    phase: str
    shape: tuple[int, ...]
    dtype: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageGraph:
    """One stage."""

    graph: Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """All stages of a model, and what crosses between them."""

    stages: tuple[StageGraph, ...]
    crossings: tuple[Crossing, ...]


def stage_graphs(graph: Graph, dims: SubDims, firsts: Sequence[int]) -> Cut:
    """The graphs of all stages, if stage i begins with forward node `firsts[i]` of `graph`.

    Raises CannotCut for stages that are empty.
    """
    nodes = [graph.nodes[first] for first in firsts]
    placed = assigned(graph, dims, firsts)
    shared = with_shares(graph, placed)
    if shared is not graph:
        dims = infer(shared)
        firsts = [_again(shared, graph, node) for node in nodes]
        placed = assigned(shared, dims, firsts)
    return _Cut(shared, dims, placed, len(firsts)).cut()


def _again(shared: Graph, graph: Graph, node: Node) -> int:
    """The number in `shared` of a node of forward of `graph`: both have the same ones, in order."""
    place = sum(one.phase == "forward" for one in graph.nodes[: node.index])
    return [one.index for one in shared.nodes if one.phase == "forward"][place]


class _Cut:
    def __init__(self, graph: Graph, dims: SubDims, placed: Assigned, num: int) -> None:
        self.graph, self.dims, self.num = graph, dims, num
        self.stages, self.holders = placed.stages, placed.holders
        self.members = [self._members(stage) for stage in range(num)]
        self.crossings: list[Crossing] = []
        #: (value, stage) -> the crossing by which it comes, and those by which it leaves.
        self.comes: dict[tuple[int, int], Crossing] = {}
        self.leaves: dict[tuple[int, int], list[Crossing]] = defaultdict(list)

    def cut(self) -> Cut:
        """The graphs of all stages."""
        for value, targets in sorted(self._needed().items()):
            self._cross(value, targets)
        return Cut(
            stages=tuple(_Stage(self, stage).graph() for stage in range(self.num)),
            crossings=tuple(self.crossings),
        )

    def _members(self, stage: int) -> list[Node]:
        """The nodes of a stage, in order, with those that it runs for itself."""
        nodes, due, found = self.graph.nodes, set[int](), []
        due.update(
            p.gradient
            for p, holders in zip(self.graph.parameters, self.holders, strict=True)
            if stage in holders
        )
        for node in reversed(nodes):
            mine = self.stages[node.index]
            if mine == stage or (mine is None and not due.isdisjoint(node.results)):
                found.append(node)
                due.update(node.operands)
        return found[::-1]

    def _needed(self) -> dict[int, set[int]]:
        """The values that stages read and other stages make, with the stages that read them."""
        made = {
            value: stage
            for node in self.graph.nodes
            if (stage := self.stages[node.index]) is not None
            for value in node.results
            if value is not None
        }
        found: dict[int, set[int]] = defaultdict(set)
        for stage, members in enumerate(self.members):
            for node in members:
                for value in node.operands:
                    if made.get(value, stage) != stage:
                        found[value].add(stage)
        return found

    def _cross(self, value: int, targets: set[int]) -> None:
        """Adds the crossings by which a value comes to all stages that read it."""
        writer = self.graph.nodes[self._writer(value)]
        home = self.stages[writer.index]
        assert home is not None
        late = any(
            is_late(node) and value in node.operands
            for target in targets
            for node in self.members[target]
        )
        phase = "update" if late else writer.phase
        have = {home}
        for target in sorted(targets, key=lambda stage: abs(stage - home)):
            source = home if late else min(have, key=lambda stage: abs(stage - target))
            have.add(target)
            crossing = Crossing(
                number=len(self.crossings),
                source=source,
                target=target,
                phase=phase,
                shape=self.graph.values[value].shape,
                dtype=self.graph.values[value].dtype,
                name=f"{writer.path or 'the model'} ({self.graph.values[value].name})",
            )
            self.crossings.append(crossing)
            self.comes[value, target] = crossing
            self.leaves[value, source].append(crossing)

    def _writer(self, value: int) -> int:
        writer = self.graph.values[value].writer
        assert writer is not None
        return writer


class _Stage:
    """Makes the graph of one stage; further values follow those of the whole graph."""

    def __init__(self, cut: _Cut, stage: int) -> None:
        self.cut, self.whole, self.stage = cut, cut.graph, stage
        self.members = cut.members[stage]
        self.values: dict[int, Value] = {value.id: value for value in self.whole.values}
        self.given: dict[int, int] = {}
        self.sent: list[tuple[int, int]] = []
        self.received: list[tuple[int, int]] = []
        self.samples: list[tuple[int, int]] = []
        self.placed: list[tuple[tuple[int, int], Node]] = []

    def graph(self) -> StageGraph:
        """The stage's graph."""
        first: dict[int, int] = {}
        for node in reversed(self.members):
            first |= dict.fromkeys(node.operands, node.index)
        backward = next(
            (n.index for n in self.members if n.phase != "forward"), len(self.whole.nodes)
        )
        for (value, target), crossing in self.cut.comes.items():
            if target == self.stage:
                at = min(first[value], backward) if crossing.phase == "forward" else first[value]
                self._receive(value, crossing, at)
        for node in self.members:
            self.placed.append(((node.index, 1), self._reading(node)))
        for (value, source), crossings in self.cut.leaves.items():
            if source == self.stage:
                for crossing in crossings:
                    self._send(value, crossing, first)
        nodes = [node for _, node in sorted(self.placed, key=lambda one: one[0])]
        return StageGraph(graph=self._graph(nodes))

    def _graph(self, nodes: list[Node]) -> Graph:
        whole = self.whole
        made = {value for node in nodes for value in node.results}
        read = {value for node in nodes for value in node.operands}
        inputs = set(whole.inputs)

        def mine(value: int) -> bool:
            return value in made or (self.values[value].writer is None and value in read | inputs)

        parameters = tuple(
            replace(p, gradient=self.given.get(p.gradient, p.gradient))
            for p, holders in zip(whole.parameters, self.cut.holders, strict=True)
            if self.stage in holders
        )
        kept = {p.value for p in parameters}
        last = self.stage == self.cut.num - 1
        updates = tuple((old, new) for old, new in whole.updates if new in made)
        kept |= {old for old, _ in updates}

        def here(value: int) -> bool:
            return value in made or (last and self.whole.values[value].writer is None)

        graph = replace(
            whole,
            parameters=parameters,
            buffers=tuple(v for v in whole.buffers if v in read or v in kept),
            loss=whole.loss if whole.loss is not None and here(whole.loss) else None,
            reported=tuple((name, v) for name, v in whole.reported if here(v)),
            updates=updates,
            carried=tuple(v for v in whole.carried if v in kept),
            sent=tuple(self.sent),
            received=tuple(self.received),
            samples=tuple(self.samples),
            copies=tuple(
                p.value
                for p, holders in zip(whole.parameters, self.cut.holders, strict=True)
                if self.stage in holders[1:]
            ),
        )
        return renumbered(
            graph, nodes, [v for v in self.values.values() if mine(v.id) or v.id in kept]
        )

    def _reading(self, node: Node) -> Node:
        """The node, reading what is received instead of what another stage makes."""
        if self.given.keys().isdisjoint(node.operands):
            return node

        def named(value: int) -> Ref:
            return Ref(self.given.get(value, value))

        args, kwargs = map_refs((node.args, node.kwargs), named)
        return replace(node, args=args, kwargs=kwargs)

    def _receive(self, value: int, crossing: Crossing, at: int) -> None:
        like = self.values[value]
        came = self._new(like, "received", str(crossing.number))
        result = self._new(like, "activation", "")
        self.received.append((crossing.number, came))
        self.samples += [(came, dim) for dim in self._sample_dims(value)]
        self.given[value] = result
        self.placed.append(((at, 0), self._node(RECEIVE, came, result, value, crossing.phase)))

    def _send(self, value: int, crossing: Crossing, first: dict[int, int]) -> None:
        source = self.given.get(value, value)
        result = self._new(self.values[source], "activation", "")
        self.sent.append((crossing.number, result))
        writer = self.cut._writer(value)
        at = (first[value], 0) if value in self.given else (writer, 2)
        self.placed.append((at, self._node(SEND, source, result, value, crossing.phase)))

    def _node(self, op: str, source: int, result: int, value: int, phase: str) -> Node:
        like = self.values[source]
        return Node(
            index=-1,
            op=op,
            args=(Ref(source),),
            kwargs=(),
            results=(result,),
            result_shapes=(like.shape,),
            result_dtypes=(like.dtype,),
            phase=phase,
            path=self.whole.nodes[self.cut._writer(value)].path,
        )

    def _new(self, like: Value, kind: str, name: str) -> int:
        writer = -1 if kind == "activation" else None
        made = replace(like, id=len(self.values), kind=kind, name=name, writer=writer)
        self.values[made.id] = made
        return made.id

    def _sample_dims(self, value: int) -> Iterable[int]:
        """The dims of a value whose outermost part is samples."""
        dims = self.cut.dims
        samples = {
            atom
            for v in self.whole.inputs
            for atom in dims.atoms[v][: len(dims.shapes[v][0]) if dims.shapes[v] else 0]
        }
        for dim, parts in enumerate(dims.shapes[value]):
            if parts and dims.atoms[value][dims.first(value, dim)] in samples:
                yield dim
