"""The models that are planned: a traced graph as the ask wants it, with its sub-dims, ties and
views."""

from __future__ import annotations

import itertools

from planner.dims.roots import roots_of
from planner.dims.subdims import SubDims, infer
from planner.dims.ties import tie
from planner.fusion.fuse import fused_graph
from planner.graph.checking import checked
from planner.graph.graph import Graph
from planner.microbatch import accumulated_in, microbatch_graph, with_line
from planner.program.check_calls import called_faults
from planner.program.check_graph import dims_faults, graph_faults
from planner.strategy.traced_model import Model
from planner.trace.trace import line_of
from planner.trace.traced import Traced
from planner.workload.ask import Ask, build

__all__ = ["dims_of", "model_of_graph", "modelled", "of_microbatch"]


def modelled(traced: Traced, ask: Ask | None = None) -> Model:
    """The traced graph with its sub-dims, ties and views; if `ask` has several microbatches, the
    graph of one of them; if it asks to compile, with elementwise chains fused. Raises BadValue and
    CannotSplit if it cannot be cut into so many."""
    graph = traced.graph if ask is None else of_microbatch(traced.graph, ask)
    return model_of_graph(graph, traced.graph, compiled=ask is not None and ask.compile)


def of_microbatch(graph: Graph, ask: Ask, dims: SubDims | None = None) -> Graph:
    """The graph of one of the ask's microbatches; the same graph if there is one. `dims` are the
    graph's, if known. Raises BadValue and CannotSplit."""
    if ask.microbatches == 1:
        return graph
    with with_line(lambda op, path: line_of(lambda: build(ask), op, path)):
        cut = microbatch_graph(graph, dims or dims_of(graph), ask.microbatches, ask.per_microbatch)
        cut = accumulated_in(cut, ask.formats)
    checked("microbatch", lambda: itertools.chain(graph_faults(cut), called_faults(cut)))
    return cut


def model_of_graph(graph: Graph, whole: Graph, *, compiled: bool) -> Model:
    """The model of a graph made of the graph `whole`, as traced; fused if it is `compiled`."""
    if compiled:
        graph = fused_graph(graph)
        checked("fusing", lambda: graph_faults(graph))
    dims = dims_of(graph)
    roots = roots_of(graph, dims)
    return Model(
        graph=graph,
        dims=dims,
        ties=tie(graph, dims, roots),
        roots=roots,
        whole=None if graph is whole else whole,
    )


def dims_of(graph: Graph) -> SubDims:
    """The graph's sub-dims, checked."""
    dims = infer(graph)
    checked("sub-dims", lambda: dims_faults(graph, dims.shapes))
    return dims
