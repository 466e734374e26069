"""Parameters that several stages read: each stage sums its own share of the gradient, and all of
them add up the same shares once a step.

Graph, stages -> Graph in which the gradient of such a parameter is the sum, in the order of stages,
of one share for each of them. Every stage that holds the parameter makes this sum, and so the same
update.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from planner.graph.graph import Graph, Node, Ref, Value
from planner.graph.sections import ACCUMULATE, SUM_OF_STAGES, is_accumulate
from planner.microbatch.numbered import in_sections
from planner.stages.assign import Assigned

__all__ = ["is_late", "with_shares"]

_ADD = "aten.add.Tensor"
_CAST = "aten._to_copy.default"


def is_late(node: Node) -> bool:
    """Whether the node adds up the shares of stages, or brings their sum to another format."""
    return node.op == SUM_OF_STAGES


def with_shares(graph: Graph, assigned: Assigned) -> Graph:
    """The graph with shares; the same graph if no parameter is read by several stages."""
    tied = [place for place, holders in enumerate(assigned.holders) if len(holders) > 1]
    return _Shares(graph, assigned).graph(tied) if tied else graph


@dataclass(frozen=True, slots=True)
class _Sum:
    """A gradient, taken apart: the terms, the casts of each microbatch's sum, the accumulation, and
    the casts of the whole."""

    terms: tuple[int, ...]
    inner: tuple[Node, ...]
    accumulate: Node | None
    outer: tuple[Node, ...]


class _Shares:
    def __init__(self, graph: Graph, assigned: Assigned) -> None:
        self.old, self.assigned = graph, assigned
        self.values: dict[int, Value] = {value.id: value for value in graph.values}
        self.readers = graph.readers()
        self.outputs = set(graph.outputs)
        self.late: list[Node] = []
        self.early: dict[int, list[Node]] = defaultdict(list)

    def graph(self, tied: list[int]) -> Graph:
        """The graph in which the gradients of the parameters `tied` are sums of shares."""
        new = {place: self._gradient(self.old.parameters[place].gradient) for place in tied}
        nodes: list[Node] = []
        for node in self.old.nodes:
            nodes.append(node)
            nodes += self.early.get(node.index, ())
        made = replace(
            self.old,
            nodes=(*nodes, *self.late),
            parameters=tuple(
                replace(p, gradient=new.get(place, p.gradient))
                for place, p in enumerate(self.old.parameters)
            ),
        )
        return in_sections(made, self.values)

    def _gradient(self, gradient: int) -> int:
        """A gradient made of the shares of stages."""
        found = self._taken_apart(gradient)
        by_stage: dict[int, list[int]] = defaultdict(list)
        for term in found.terms:
            writer = self.old.values[term].writer
            stage = None if writer is None else self.assigned.stages[writer]
            assert stage is not None, term
            by_stage[stage].append(term)
        shares = [self._share(by_stage[stage], found) for stage in sorted(by_stage)]
        total = self._value(shares[0])
        path = self.old.nodes[self.old.values[found.terms[0]].writer or 0].path
        self.late.append(self._node(SUM_OF_STAGES, tuple(map(Ref, shares)), total, path, "update"))
        for cast in found.outer:
            self.late.append(self._like(cast, total))
            total = self.late[-1].results[0]  # type: ignore[assignment]
        return total

    def _share(self, terms: list[int], found: _Sum) -> int:
        """The share of one stage: the sum of its terms, over all microbatches."""
        after = max(self.old.values[t].writer or 0 for t in terms)
        total, *rest = terms
        for term in rest:
            made = self._value(total)
            self.early[after].append(
                self._node(_ADD, (Ref(total), Ref(term)), made, self._path(term), "backward")
            )
            total = made
        for cast in found.inner:
            self.early[after].append(self._like(cast, total))
            total = self.early[after][-1].results[0]  # type: ignore[assignment]
        if found.accumulate is not None:
            made = self._value(total)
            self.early[after].append(
                self._node(ACCUMULATE, (Ref(total),), made, self._path(terms[0]), "update")
            )
            total = made
        return total

    def _path(self, value: int) -> str:
        writer = self.old.values[value].writer
        return "" if writer is None else self.old.nodes[writer].path

    def _like(self, cast: Node, source: int) -> Node:
        """A cast as `cast`, of another value."""
        made = self._value(source, cast.result_dtypes[0])
        return replace(cast, args=(Ref(source), *cast.args[1:]), results=(made,))

    def _node(self, op: str, args: tuple[Ref, ...], result: int, path: str, phase: str) -> Node:
        value = self.values[result]
        return Node(
            index=-1,
            op=op,
            args=args,
            kwargs=(),
            results=(result,),
            result_shapes=(value.shape,),
            result_dtypes=(value.dtype,),
            phase=phase,
            path=path,
        )

    def _value(self, like: int, dtype: str = "") -> int:
        source = self.values[like]
        made = replace(
            source, id=len(self.values), dtype=dtype or source.dtype, kind="activation", writer=-1
        )
        self.values[made.id] = made
        return made.id

    # ---------------------------------------------------------------------------------- taken apart

    def _taken_apart(self, gradient: int) -> _Sum:
        outer, value = self._casts(gradient)
        writer = self._writer(value)
        accumulate = writer if writer is not None and is_accumulate(writer) else None
        if accumulate is not None:
            inner, value = self._casts(accumulate.operands[0])
        else:
            inner, outer = outer, ()
        return _Sum(tuple(self._terms(value)), inner, accumulate, outer)

    def _casts(self, value: int) -> tuple[tuple[Node, ...], int]:
        """The casts at the end of a value, first to last, and what they cast."""
        found: list[Node] = []
        while (node := self._writer(value)) is not None and node.op == _CAST:
            found.append(node)
            value = node.operands[0]
        return tuple(reversed(found)), value

    def _terms(self, value: int) -> list[int]:
        """The terms of a sum that is read by nothing but what adds it up further."""
        node = self._writer(value)
        if node is None or node.op != _ADD or node.kwargs or len(node.operands) != 2:
            return [value]
        shapes = {self.old.values[v].shape for v in (value, *node.operands)}
        if len(shapes) > 1:
            return [value]
        return [term for v in node.operands for term in self._terms(v)]

    def _writer(self, value: int) -> Node | None:
        writer = self.old.values[value].writer
        return None if writer is None else self.old.nodes[writer]
