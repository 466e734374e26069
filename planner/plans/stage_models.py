"""The models of the stages of a pipeline: each is planned like a model of its own.

Traced model, ask, units at which stages begin -> models, and what crosses between them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from cost_models.errors import BadPlan
from planner.dims.subdims import SubDims
from planner.dims.ties import pattern_of
from planner.graph.checking import checked
from planner.graph.graph import Graph, map_refs
from planner.plans.models import dims_of, model_of_graph, of_microbatch
from planner.program.check_graph import graph_faults
from planner.stages import Crossing, Unit, stage_graphs, units_of
from planner.strategy.traced_model import Model
from planner.trace.traced import Traced
from planner.workload.ask import Ask

__all__ = ["Cuttable", "StageModels", "check_begins", "cuttable", "stage_models", "structure_of"]


@dataclass(frozen=True, kw_only=True)
class Cuttable:
    """A model that stages can be cut from: the graph of a microbatch, and its units."""

    whole: Graph
    graph: Graph
    dims: SubDims
    units: tuple[Unit, ...]
    compile: bool

    def at(self, unit: int) -> str:
        """The first op of a unit, in words."""
        node = self.graph.nodes[self.units[unit].nodes[0]]
        return f"{node.op} in {node.path or 'the model'}"


@dataclass(frozen=True, kw_only=True)
class StageModels:
    """The models of all stages, and what crosses between them."""

    models: tuple[Model, ...]
    crossings: tuple[Crossing, ...]


def cuttable(traced: Traced, ask: Ask, whole: SubDims | None = None) -> Cuttable:
    """The traced model with the microbatches that `ask` has; `whole` are the sub-dims of the traced
    graph, if known. Raises BadValue and CannotSplit as `modelled` does."""
    graph = of_microbatch(traced.graph, ask, whole)
    dims = whole if whole is not None and graph is traced.graph else dims_of(graph)
    return Cuttable(
        whole=traced.graph,
        graph=graph,
        dims=dims,
        units=units_of(graph, dims),
        compile=ask.compile,
    )


def stage_models(model: Cuttable, begins: Sequence[int]) -> StageModels:
    """The stages that begin with these units, the first of which is 0. Raises CannotCut."""
    firsts = [model.units[unit].nodes[0] for unit in begins]
    cut = stage_graphs(model.graph, model.dims, firsts)
    known: dict[Hashable, Model] = {}
    models = []
    for stage in cut.stages:
        key = structure_of(stage.graph)
        if key in known and not model.compile:
            models.append(replace(known[key], graph=stage.graph))
            continue
        known[key] = model_of_graph(_checked(stage.graph), model.whole, compiled=model.compile)
        models.append(known[key])
    return StageModels(models=tuple(models), crossings=cut.crossings)


def structure_of(graph: Graph) -> Hashable:
    """All of a graph but the names of its layers and the numbers of what crosses: graphs with the
    same structure have the same sub-dims, ties, strategies and costs."""

    def plain(args: object) -> str:
        return repr(map_refs(args, lambda v: ("value", v)))

    return (
        tuple((v.shape, v.dtype, v.kind) for v in graph.values),
        tuple(
            (n.op, plain((n.args, n.kwargs)), n.results, n.phase, n.checkpoint, pattern_of(n.path))
            for n in graph.nodes
        ),
        tuple((p.value, p.gradient, pattern_of(p.name)) for p in graph.parameters),
        (graph.loss, graph.reported, graph.updates, graph.samples, graph.copies),
        tuple(v for _, v in graph.sent),
        tuple(v for _, v in graph.received),
    )


def check_begins(model: Cuttable, begins: int, at: str) -> None:
    """Raises BadPlan if a unit is not the one that a plan was made for."""
    if begins >= len(model.units) or model.at(begins) != at:
        raise BadPlan(
            f"the plan has a stage that begins at {at}, unit {begins}, which the model does not "
            "have there; plan again"
        )


def _checked(graph: Graph) -> Graph:
    checked("stages", lambda: graph_faults(graph))
    return graph
