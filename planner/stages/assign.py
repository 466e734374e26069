"""The stage of every op, from those of the ops of forward.

An op of backward runs no earlier than a stage that has the forward values that it reads, and no
later than the gradients that it reads: gradients only go to earlier stages, forward values to later
ones. Within these limits it is where its module is. Any choice within them computes the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cost_models.errors import UserError
from planner.dims.subdims import SubDims
from planner.graph.graph import Graph, Node
from planner.graph.sections import SUM_OF_STAGES
from planner.stages.free import free_nodes

__all__ = ["Assigned", "CannotCut", "assigned"]


class CannotCut(UserError):
    """Stages that the model cannot be cut into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """The stage of every node, None for those that every stage runs that reads them; and the stages
    that read each parameter, in order."""

    stages: tuple[int | None, ...]
    holders: tuple[tuple[int, ...], ...]


def assigned(graph: Graph, dims: SubDims, firsts: Sequence[int]) -> Assigned:
    """The stages of all nodes if stage i begins with the forward node of number `firsts[i]`, and
    ends where the next one begins. The first stage begins with the first node.

    Raises CannotCut for stages without an op.
    """
    free = free_nodes(graph, dims)
    forward: dict[int, int] = {}
    for node in graph.nodes:
        if node.phase == "forward" and node.index not in free:
            forward[node.index] = bisect_right(firsts, node.index, lo=1) - 1
    empty = {*range(len(firsts))} - {*forward.values()}
    if empty:
        raise CannotCut(f"stage {min(empty)} of {len(firsts)} has no op: cut in fewer stages")
    return _Assignment(graph, forward, free, len(firsts)).assigned()


class _Assignment:
    def __init__(
        self, graph: Graph, forward: dict[int, int], free: frozenset[int], num: int
    ) -> None:
        self.graph, self.free, self.num = graph, free, num
        self.stage: dict[int, int] = dict(forward)
        self.stages_of_path: dict[str, set[int]] = defaultdict(set)
        for index, stage in forward.items():
            self.stages_of_path[graph.nodes[index].path].add(stage)
        self.written = {
            value: stage
            for index, stage in forward.items()
            for value in graph.nodes[index].results
            if value is not None
        }
        self.sources: dict[int, frozenset[int]] = {}
        self._find_sources()
        self.late = self._late()

    def _late(self) -> frozenset[int]:
        """The nodes that add up the shares of stages, and what is made of their sums."""
        late, found = set[int](), set[int]()
        for node in self.graph.nodes:
            if node.op == SUM_OF_STAGES or not late.isdisjoint(node.operands):
                found.add(node.index)
                late.update(v for v in node.results if v is not None)
        return frozenset(found)

    def assigned(self) -> Assigned:
        """The stages of all nodes."""
        holders = self._holders()
        self._backward(holders)
        return Assigned(
            stages=tuple(self.stage.get(node.index) for node in self.graph.nodes),
            holders=tuple(holders[p.value] for p in self.graph.parameters),
        )

    def _find_sources(self) -> None:
        """Finds, for results of free nodes, the values that they are made of: made by placed nodes,
        or given to the step."""
        for node in self.graph.nodes:
            if node.index in self.free:
                made_of = self._made_of(node)
                self.sources |= {v: made_of for v in node.results if v is not None}

    def _made_of(self, node: Node) -> frozenset[int]:
        found: set[int] = set()
        for value in node.operands:
            found |= self.sources_of(value)
        return frozenset(found)

    def sources_of(self, value: int) -> frozenset[int]:
        """The values of placed nodes, or given to the step, that a value is made of."""
        return self.sources.get(value, frozenset({value}))

    def _holders(self) -> dict[int, tuple[int, ...]]:
        """The stages that read each parameter in forward."""
        readers: dict[int, set[int]] = {p.value: set() for p in self.graph.parameters}
        for index, stage in self.stage.items():
            for value in self._made_of(self.graph.nodes[index]):
                if value in readers:
                    readers[value].add(stage)
        return {value: tuple(sorted(found)) or (0,) for value, found in readers.items()}

    # ------------------------------------------------------------------------------------- backward

    def _backward(self, holders: dict[int, tuple[int, ...]]) -> None:
        """Adds the stages of the nodes of backward and of the update."""
        nodes = [
            n
            for n in self.graph.nodes
            if n.phase != "forward" and n.index not in self.free | self.late
        ]
        lowest, wanted = self._lowest(nodes, holders), self._wanted(nodes)
        made = {v: n for n in nodes for v in n.results if v is not None}
        of_gradient = {p.gradient: holders[p.value] for p in self.graph.parameters}
        for node in nodes:
            above = [self.stage[made[v].index] for v in node.operands if v in made]
            highest = min(above, default=self.num - 1)
            least = lowest[node.index]
            needed = [holders[v] for v in self._made_of(node) if v in holders]
            needed += [of_gradient[v] for v in node.results if v in of_gradient]
            possible = [
                s for s in range(least, highest + 1) if all(s in stages for stages in needed)
            ]
            if not possible:
                raise CannotCut(
                    f"stages {least} and {highest} are cut through an op: {node.op} in "
                    f"{node.path or 'the model'} computes gradients of both in one; cut before or "
                    "after that module"
                )
            own = self.stages_of_path[node.path].intersection(possible)
            # Of a module on several stages, what can runs on the first: only its gradient crosses.
            # But not earlier than what reads its results, which could then run no later either.
            late = [s for s in own if s >= wanted[node.index]]
            self.stage[node.index] = min(late) if late else max(own or possible)

    def _wanted(self, nodes: Sequence[Node]) -> dict[int, int]:
        """The latest of the stages of the modules of a node and of what is made of its results; of
        a module on several stages the first counts."""
        due: dict[int, int] = defaultdict(int)
        wanted = {}
        for node in reversed(nodes):
            own = min(self.stages_of_path.get(node.path, (0,)))
            wanted[node.index] = max([own, *(due[r] for r in node.results if r is not None)])
            for value in node.operands:
                due[value] = max(due[value], wanted[node.index])
        return wanted

    def _lowest(self, nodes: Sequence[Node], holders: dict[int, tuple[int, ...]]) -> dict[int, int]:
        """The first stage on which each node can run: what it, or a node that reads its result,
        reads of forward is there, and so is the parameter that it makes a gradient for."""
        due: dict[int, int] = defaultdict(int)
        for parameter in self.graph.parameters:
            due[parameter.gradient] = max(due[parameter.gradient], holders[parameter.value][0])
        lowest = {}
        for node in reversed(nodes):
            of_forward = (
                self._stage_of(source) for v in node.operands for source in self.sources_of(v)
            )
            least = max([*of_forward, *(due[r] for r in node.results if r is not None)], default=0)
            for stages in (holders[v] for v in self._made_of(node) if v in holders):
                least = max(least, next((s for s in stages if s >= least), stages[-1]))
            lowest[node.index] = least
            for value in node.operands:
                due[value] = max(due[value], least)
        return lowest

    def _stage_of(self, value: int) -> int:
        """The stage that has a value of forward first; 0 for what every stage has."""
        return self.written.get(value, 0)
