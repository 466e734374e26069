"""Small plans of steps in microbatches."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import small_plans
from small_plans import Planned, planned

from planner.graph.checking import checking
from planner.microbatch import microbatch_graph
from planner.plans.replay import modelled
from planner.trace.trace import trace
from planner.workload.ask import Ask, build

__all__ = ["planned_in"]


def planned_in(
    ask: Ask, microbatches: int, mesh: str, pins: tuple[str, ...] = (), **more: Any
) -> Planned:
    """The best plan of a step in so many microbatches, on a mesh under pins."""
    one = replace(ask, num_devices=1)
    with checking():
        found = trace(partial(build, one), ask.model)
        graph = microbatch_graph(found.graph, modelled(found).dims, microbatches)
        model = modelled(replace(found, graph=graph))
    before = small_plans._TRACED.pop(repr(one), None)
    small_plans._TRACED[repr(one)] = model, found.workload
    try:
        return planned(ask, mesh, pins, **more)
    finally:
        del small_plans._TRACED[repr(one)]
        if before is not None:
            small_plans._TRACED[repr(one)] = before
