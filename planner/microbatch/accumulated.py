"""The format in which gradients are added up over microbatches, where it is not that in which they
are summed over ranks.

Graph of a microbatch -> Graph. A gradient is cast before it is added, or taken before its cast, and
the whole sum is cast to the format in which ranks sum it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from planner.graph.graph import Graph, Node, Ref, Value
from planner.graph.sections import is_accumulate
from planner.microbatch.numbered import in_sections
from planner.trace.gradient_format import before_cast, cast_of
from planner.workload.precision import Formats

__all__ = ["accumulated_in"]


def accumulated_in(graph: Graph, formats: Formats) -> Graph:
    """The graph whose gradients are added up in the format that `formats` has for it; the same
    graph if they are already."""
    values = graph.values
    wanted = {
        p.gradient: dtype
        for p in graph.parameters
        if _is_sum(graph, p.gradient)
        and (dtype := formats.accumulated(values[p.value].dtype)) != values[p.gradient].dtype
    }
    return _Accumulated(graph, wanted).graph() if wanted else graph


def _is_sum(graph: Graph, value: int) -> bool:
    writer = graph.values[value].writer
    return writer is not None and is_accumulate(graph.nodes[writer])


class _Accumulated:
    """Replaces sums, by the format `wanted` of each; further values follow those of the graph."""

    def __init__(self, graph: Graph, wanted: Mapping[int, str]) -> None:
        self.old, self.wanted = graph, wanted
        self.values = {value.id: value for value in graph.values}

    def graph(self) -> Graph:
        """The graph with other sums."""
        nodes: list[Node] = []
        late: list[Node] = []
        new: dict[int, int] = {}
        for node in self.old.nodes:
            gradient = node.results[0]
            if gradient is None or gradient not in self.wanted:
                nodes.append(node)
                continue
            dtype = self.wanted[gradient]
            source = self._source(node, dtype, nodes)
            total = self._value(gradient, dtype).id
            nodes.append(
                replace(node, args=(Ref(source),), results=(total,), result_dtypes=(dtype,))
            )
            new[gradient] = self._cast(total, self.values[gradient].dtype, node.path, late)
        made = replace(
            self.old,
            nodes=(*nodes, *late),
            parameters=tuple(
                replace(p, gradient=new.get(p.gradient, p.gradient)) for p in self.old.parameters
            ),
        )
        return in_sections(made, self.values)

    def _source(self, node: Node, dtype: str, nodes: list[Node]) -> int:
        """One microbatch's gradient in a format: as it was before a cast, or cast."""
        (value,) = node.operands
        before = before_cast(self.old, value, dtype)
        return self._cast(value, dtype, node.path, nodes) if before is None else before

    def _cast(self, value: int, dtype: str, path: str, nodes: list[Node]) -> int:
        """Adds a cast; returns its result."""
        result = self._value(value, dtype)
        nodes.append(cast_of(self.values[value], result, phase="backward", path=path))
        return result.id

    def _value(self, like: int, dtype: str) -> Value:
        """A further value, which differs from another in its format."""
        made = replace(self.values[like], id=len(self.values), dtype=dtype)
        self.values[made.id] = made
        return made
