"""Records a whole step as a `Graph`; again if a write in place must become functional, or if an
error must name the line of an op."""

from __future__ import annotations

from collections.abc import Callable

from planner.graph.checking import checked
from planner.graph.graph import Graph
from planner.program.check_graph import graph_faults, lint_faults
from planner.torch_private.recording import (
    functional,
)
from planner.trace.decompose import decomposition_table
from planner.trace.read_fx import read_graph
from planner.trace.record import record_step
from planner.trace.refused import ChangedInPlace, Refused
from planner.workload.workload import Workload

__all__ = ["checked_graph", "step_graph", "whole_graph"]


def whole_graph(workload: Workload, begin: Callable[[], None]) -> Graph:
    begin()
    try:
        return step_graph(workload)
    except Refused:  # again, slowly, to name the line
        begin()
        return step_graph(workload, lines=True)


def step_graph(workload: Workload, *, lines: bool = False) -> Graph:
    """The graph as recorded or, if a write in place is seen through another tensor, with all
    writing ops made functional."""
    fx_graph, names, losses, arguments, unused = record_step(workload, lines)
    checked("recording", lambda: lint_faults(fx_graph))
    try:
        return checked_graph("reading", read_graph(fx_graph, names, losses, workload, unused))
    except ChangedInPlace as refused:
        try:
            again = functional(fx_graph, arguments, decomposition_table())
            checked("making ops functional", lambda: lint_faults(again))
            return checked_graph(
                "reading", read_graph(again, names, losses, workload, unused, functional=True)
            )
        except ChangedInPlace:
            # It writes to a parameter or an input: report the op as the user wrote it.
            raise refused from None


def checked_graph(name: str, graph: Graph) -> Graph:
    checked(name, lambda: graph_faults(graph))
    return graph
