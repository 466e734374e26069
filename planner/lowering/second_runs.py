"""Ops that run a second time in backward, because their results were not kept from forward.

Choices -> for a value that backward reads: the ops to run again for it, in order. An op runs again
once, just before the first op of backward that needs it, directly or through others.
"""

from __future__ import annotations

from dataclasses import replace

from planner.graph.graph import Node
from planner.strategy.choices import Choices
from planner.strategy.modes import rerun
from planner.strategy.strategies import SECOND
from planner.strategy.traced_model import Model

__all__ = ["SecondRuns"]


class SecondRuns:
    """The second runs of a step; those that have been added have program values in `made`."""

    def __init__(self, model: Model, choices: Choices) -> None:
        self.model = model
        self._values = set(rerun(model, choices.strategies))
        self._read = _read_in_backward(model, choices) if self._values else set()
        self._ran: set[int] = set()

    def add(self, value: int) -> None:
        """Makes backward read a value from a second run."""
        self._values.add(value)
        self._read.add(value)

    def of(self, value: int) -> bool:
        """Whether backward reads a root value from a second run."""
        return value in self._values

    def needed(self, value: int) -> list[Node]:
        """The ops that have not run again yet and must, for backward to read a root value; in
        order. From here on they count as having run."""
        graph = self.model.graph
        pending, found = [graph.values[value].writer], set()
        while pending:
            index = pending.pop()
            if index is None or index in found or index in self._ran:
                continue
            found.add(index)
            roots = (self.model.roots[v].value for v in graph.nodes[index].operands)
            pending += [graph.values[root].writer for root in roots if root in self._values]
        self._ran |= found
        return [self._second(graph.nodes[index]) for index in sorted(found)]

    def _second(self, node: Node) -> Node:
        """The node as it runs in backward: without the results that backward does not read, or
        that are kept."""
        wanted = tuple(v if v in self._read and v in self._values else None for v in node.results)
        return replace(node, phase="backward", results=wanted)


def _read_in_backward(model: Model, choices: Choices) -> set[int]:
    """The root values that ops of backward read, and ops that run again."""
    strategies = choices.strategies
    return {
        value
        for (value, phase), uses in model.uses.items()
        if phase == "backward"
        or any(u.node is not None and strategies[u.node].mode in SECOND for u in uses)
    }
