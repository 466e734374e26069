"""The modes of every op by itself, under the strategies of a tied choice: like layers need not run
the same again.

Table, choice, memory limit -> a Problem with a node for every op of the graph that may have several
modes, and the strategies of its choices. Memory is exact as far as the table's is. A change of
layout that several second runs share is charged to each of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cost_models.memory import dtype_bytes
from planner.solver.problem.pairs import memory_with_pairs
from planner.solver.problem.problem import Array, Choice, Edge, Problem, Usage
from planner.strategy.across import across_layers
from planner.strategy.cost_table import CostTable
from planner.strategy.held import Held
from planner.strategy.problem import problem_of, with_memory
from planner.strategy.strategies import KEPT, SECOND, Strategy
from planner.strategy.traced_model import Use
from planner.strategy.usages import result_bytes

__all__ = ["Untied", "untied"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Untied:
    """The `problem`; `tied` is the tied choice in it; `options[i]` are graph node and strategies of
    problem node i."""

    problem: Problem
    tied: Choice
    options: tuple[tuple[int, tuple[Strategy, ...]], ...]

    def strategies(self, choice: Choice) -> dict[int, Strategy]:
        """The strategies of the graph's nodes under a choice."""
        pairs = zip(self.options, choice, strict=True)
        return {node: strategies[x] for (node, strategies), x in pairs}


def untied(table: CostTable, choice: Choice, limit: float, *, across: bool = False) -> Untied:
    """The problem of the modes of all ops under a tied choice of the table, within `limit` bytes
    per device. `across`: what one layer leaves to another may be made again, too. Then the problem
    counts too little memory: all that a chain of second runs through layers makes is held from its
    first reading on, and not, as is counted, each value from its own."""
    problem, pairs = with_memory(table, problem_of(table), 1e30)
    whole = memory_with_pairs(problem, pairs, choice)
    return _Builder(*(across_layers(table, choice) if across else (table, choice))).untied(
        limit, whole
    )


class _Builder:
    def __init__(self, table: CostTable, choice: Choice) -> None:
        self.table, self.choice, self.model = table, choice, table.model
        self.held = Held(table)
        self.options: list[tuple[int, tuple[Strategy, ...]]] = []
        self.number: dict[int, int] = {}
        self.tied: list[int] = []
        for number, members in zip(table.node_of, self.model.ties.nodes_of, strict=True):
            if number is not None:
                self._options(number, members)
        self.costs: list[Array] = [np.zeros(len(options)) for _, options in self.options]
        self.pairs: dict[tuple[int, int], Array] = {}
        self._bytes: dict[tuple[int, int], float] = {}

    def _options(self, number: int, members: tuple[int, ...]) -> None:
        """The chosen strategy of a class in each of its modes, for every member with a choice."""
        mine = self.table.strategies[number][self.choice[number]]
        modes = tuple(
            s for s in self.table.strategies[number] if replace(s, mode=mine.mode) == mine
        )
        for member in members if len(modes) > 1 else ():
            if member in self.table.readings.runs_at:
                self.number[member] = len(self.options)
                self.options.append((member, modes))
                self.tied.append(modes.index(mine))

    def untied(self, limit: float, whole: Array) -> Untied:
        """The problem; `whole` is the memory of the tied choice over time."""
        self._ops()
        for (value, phase), uses in self.table.readings.uses.items():
            again = [use for use in uses if use.again and use.node in self.number]
            if phase == "backward" and again:
                self._second_readings(value, uses, again)
        self._views()
        usages = self._usages()
        edges = tuple(Edge(u=u, v=v, cost=cost) for (u, v), cost in self.pairs.items())
        horizon = len(self.model.graph.nodes) + 1
        free = Problem(costs=tuple(self.costs), edges=edges, usages=usages, horizon=horizon)
        base = whole - free.memory(tuple(self.tied))
        return Untied(
            problem=replace(free, limit=limit, base=np.maximum(base, 0.0)),
            tied=tuple(self.tied),
            options=tuple(self.options),
        )

    # ------------------------------------------------------------------------------------- seconds

    def _ops(self) -> None:
        """Adds the time of second runs."""
        for (index, options), costs in zip(self.options, self.costs, strict=True):
            node, dims = self.model.graph.nodes[index], self.model.dims.ops[index]
            seconds = self.table.costing.ops.cost(node, dims, options[0]) * self.model.runs[index]
            costs += [seconds if s.mode in SECOND else 0.0 for s in options]

    def _second_readings(self, value: int, uses: list[Use], again: list[Use]) -> None:
        """Adds the changes of layout for second runs, and forbids those that read what is not
        left."""
        made = self.table.produced(value)
        if made is None:
            return
        before = made[1][self.choice[made[0]]]
        hub = self.table.hub_of.get((value, "backward"))
        at = None if hub is None else self.table.hub_layouts[hub][self.choice[hub]]
        assert before is not None
        at = before if at is None else at
        costs = self.table.costing.messages.layouts(
            self.model.dims.flat(value),
            dtype_bytes(self.model.graph.values[value].dtype),
            "backward",
        )
        first = 0.0 if any(not use.again for use in uses) else costs.cost(before, at)
        for use in again:
            assert use.node is not None
            number = self.number[use.node]
            _, options = self.options[number]
            read = use.root.layout(options[0].operands[use.position])
            seconds = self.model.readings(value, use) * (first + costs.cost(at, read))
            self.costs[number] += [seconds if s.mode in SECOND else 0.0 for s in options]
            self._forbid(value, number, options)

    def _forbid(self, value: int, reader: int, options: tuple[Strategy, ...]) -> None:
        """Forbids that an op runs again if its operand is neither kept nor made again."""
        writer = self.model.graph.values[value].writer
        if writer is None:
            return
        left = self.table.leaving(value)
        again = np.array([s.mode in SECOND for s in options])
        if writer in self.number:
            gone = np.array([s.mode not in left for s in self.options[self.number[writer]][1]])
            self._add(self.number[writer], reader, np.outer(gone, again))
            return
        produced = self.table.produced(value)
        assert produced is not None
        if self.table.strategies[produced[0]][self.choice[produced[0]]].mode not in left:
            self.costs[reader][again] = np.inf

    def _views(self) -> None:
        """Forbids that a view is kept whose operand is not."""
        for number, (index, options) in enumerate(self.options):
            under = self.held.looked_at_by(index)
            writer = None if under is None else self.model.graph.values[under].writer
            if writer in self.number:
                other = self.number[writer]
                gone = np.array([s.mode != KEPT for s in self.options[other][1]])
                self._add(other, number, np.outer(gone, [s.mode == KEPT for s in options]))

    def _add(self, u: int, v: int, forbidden: Array) -> None:
        key, table = ((u, v), forbidden) if u < v else ((v, u), forbidden.T)
        cost = np.where(table, np.inf, 0.0)
        self.pairs[key] = self.pairs[key] + cost if key in self.pairs else cost

    # -------------------------------------------------------------------------------------- memory

    def _usages(self) -> tuple[Usage, ...]:
        """What every op with a choice holds, under each of its modes."""
        by_value = self.table.readings.by_value
        return tuple(
            Usage(node=number, nbytes=nbytes, spans=tuple((a, b, 1.0) for a, b in spans))
            for number, (index, options) in enumerate(self.options)
            for value in self.model.graph.nodes[index].results
            if value is not None and value in by_value and self.held.looked_at(value) is None
            for nbytes, spans in self._held(index, options, value, by_value[value])
        )

    def _held(
        self, index: int, options: tuple[Strategy, ...], value: int, uses: list[Use]
    ) -> list[tuple[Array, tuple[tuple[int, int], ...]]]:
        produced = self.table.produced(value)
        assert produced is not None
        key = self.model.ties.node_class[index], self.model.graph.nodes[index].results.index(value)
        if key not in self._bytes:
            self._bytes[key] = float(result_bytes(self.table, value)[self.choice[produced[0]]])
        modes = (s.mode for s in options)
        return [
            (np.array([self._bytes[key] if s.mode == mode else 0.0 for s in options]), spans)
            for mode, spans in self.held.by_mode(modes, value, uses, index).items()
        ]
