"""The rules that the modes of ops keep, on a whole graph.

Model, strategies -> faults. An op in backward is kept. An op that runs once is read neither in
backward nor by an op that runs again. An op that runs again is followed from what it reads: values
that are kept, given, or written by ops that run again too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from planner.dims.roots import is_view
from planner.strategy.strategies import AGAIN, KEPT, ONCE, SECOND, Strategy
from planner.strategy.traced_model import Model

__all__ = ["mode_faults", "rerun"]


def rerun(model: Model, strategies: Mapping[int, Strategy]) -> frozenset[int]:
    """The root values that backward reads from a second run of their op: results of ops that run
    again. Of mode `again`, those that other layers read (`Model.crossing`) are kept."""
    return frozenset(
        value
        for index, strategy in strategies.items()
        if strategy.mode in SECOND
        for value in model.graph.nodes[index].results
        if value is not None and (strategy.mode != AGAIN or value not in model.crossing)
    )


def mode_faults(model: Model, strategies: Mapping[int, Strategy]) -> Iterator[str]:
    """The ops whose modes contradict each other, one line each."""
    graph = model.graph
    for node in graph.nodes:
        if is_view(model.dims, node.index):
            continue
        mode = strategies[node.index].mode
        if node.phase != "forward" and mode != KEPT:
            yield f"{node.op} in {node.path!r} is of phase {node.phase} and has mode {mode}"
        if node.phase != "backward" and mode not in SECOND:
            continue
        for operand in node.operands:
            writer = graph.values[model.roots[operand].value].writer
            if writer is not None and strategies[writer].mode == ONCE:
                source = graph.nodes[writer]
                yield (
                    f"{node.op} in {node.path!r} is read in backward from {source.op} in "
                    f"{source.path!r}, whose mode is {ONCE}"
                )
