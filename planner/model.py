"""A traced model as every mesh sees it: its graph, sub-dims, ties and views, and who reads which value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from planner.graph import Graph, Node, Parameter
from planner.strategies import Option
from planner.subdims import SubDims
from planner.ties import Ties
from planner.views import Root, is_view

__all__ = ["Model", "Pins", "Use", "uses_of"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A traced model as every mesh sees it: computed once, shared by all tables."""

    graph: Graph
    dims: SubDims
    ties: Ties
    roots: tuple[Root, ...]

    @cached_property
    def parameter_index(self) -> dict[int, int]:
        """The number of the parameter that a value is."""
        return {parameter.value: index for index, parameter in enumerate(self.graph.parameters)}

    @cached_property
    def cast_gradients(self) -> frozenset[int]:
        """Root values in a short format that are read by nothing but the cast to a parameter's gradient: they are summed over ranks
        after it, in the parameter's format."""
        gradients = {self.roots[parameter.gradient].value for parameter in self.graph.parameters}
        casts = [n for n in self.graph.nodes if n.op == "aten._to_copy.default" and n.results[0] in gradients]
        if not casts:
            return frozenset()
        readers: dict[int, int] = defaultdict(int)
        for (value, _), uses in uses_of(self).items():
            readers[value] += len(uses)
        found = (self.roots[node.operands[0]].value for node in casts)
        return frozenset(v for v in found if readers[v] == 1 and self.graph.values[v].writer is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """Which options a person allows: of node n on axis a, and of parameter p on axis a."""

    op: Callable[[Node, int, Option], bool] = lambda node, axis, option: True
    parameter: Callable[[Parameter, int, Option], bool] = lambda parameter, axis, option: True


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One reading of a root value: by operand `position` of graph node `node`, or as the gradient of parameter `parameter`."""

    root: Root
    phase: str
    node: int | None = None
    position: int = 0
    parameter: int | None = None


def uses_of(model: Model) -> dict[tuple[int, str], list[Use]]:
    """All readings of root values, by (root value, phase), in order."""
    graph, roots = model.graph, model.roots
    found: dict[tuple[int, str], list[Use]] = defaultdict(list)
    for node in graph.nodes:
        if is_view(model.dims, node.index):
            continue
        for position, value in enumerate(node.operands):
            root = roots[value]
            found[root.value, node.phase].append(Use(root=root, phase=node.phase, node=node.index, position=position))
    for index, parameter in enumerate(graph.parameters):
        root = roots[parameter.gradient]
        found[root.value, "update"].append(Use(root=root, phase="update", parameter=index))
    return dict(found)
