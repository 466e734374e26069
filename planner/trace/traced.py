"""The record of a traced step: its graph, and the workload that it is of."""

from __future__ import annotations

from dataclasses import dataclass

from planner.graph.graph import Graph
from planner.workload.workload import Workload, unused

__all__ = ["Traced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """The graph, and the workload it was traced from (its tensors are fake: shapes without
    memory). If the module's stacks all have `depth` blocks, and that is many, `shallow` has the
    graphs at some smaller depths."""

    graph: Graph
    workload: Workload
    depth: int = 0
    shallow: tuple[tuple[int, Graph], ...] = ()

    @property
    def unused(self) -> tuple[str, ...]:
        """The names of parameters that take no part in the loss: they have no gradient, and the
        optimizer leaves them alone."""
        return unused(self.workload.module, (p.name for p in self.graph.parameters))
