"""The choices: a strategy for every op and every parameter, a layout for every hub.

`read_choices` reads them from the solver's answer. `recost` prices them again by walking the whole,
untied graph: a plan reports this objective, and it must equal the solver's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cost_models.memory import dtype_bytes
from planner.graph.layout import REPLICATE, Layout
from planner.strategy.cost_table import CostTable
from planner.strategy.costing import Costing
from planner.strategy.message_costs import BUCKET_BYTES
from planner.strategy.recompute import second_runs
from planner.strategy.strategies import SECOND, ParameterStrategy, Strategy
from planner.strategy.traced_model import Model, Use

__all__ = ["Choices", "read_choices", "recost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """Strategies by graph node and by parameter, in order; layouts of hubs by (root value, phase).
    `bucket` is the bytes of gradients that are reduced together. `recast`: parameters are cast
    again for backward, and no cast copy is held from forward."""

    strategies: dict[int, Strategy]
    parameters: tuple[ParameterStrategy, ...]
    hubs: dict[tuple[int, str], Layout]
    bucket: int = BUCKET_BYTES
    recast: bool = False


def read_choices(table: CostTable, choice: tuple[int, ...]) -> Choices:
    """The choices of a solution of the table's problem."""
    ties = table.model.ties
    modes = table.modes(table.model)
    strategies = {}
    for node in table.model.graph.nodes:
        index = table.node_of[ties.node_class[node.index]]
        if index is not None:
            strategy = table.strategies[index][choice[index]]
            mode = modes.get(node.index, strategy.mode)
            strategies[node.index] = (
                strategy if mode == strategy.mode else replace(strategy, mode=mode)
            )
    parameters = []
    for number in ties.parameter_class:
        index = table.parameter_of[number]
        parameters.append(table.parameter_strategies[index][choice[index]])
    at = {key: table.hub_layouts[hub][choice[hub]] for key, hub in table.hub_of.items()}
    hubs = {key: layout for key, layout in at.items() if layout is not None}
    return Choices(
        strategies=strategies,
        parameters=tuple(parameters),
        hubs=hubs,
        bucket=table.costing.messages.bucket_size,
    )


def recost(model: Model, costing: Costing, choices: Choices, *, overlapped: float = 0.0) -> float:
    """The objective of `choices`, node by node and edge by edge over the whole graph, without
    ties."""
    return _Walk(model, costing, choices, 1.0 - overlapped).total()


class _Walk:
    def __init__(self, model: Model, costing: Costing, choices: Choices, exposed: float) -> None:
        self.model, self.costing, self.choices, self.exposed = model, costing, choices, exposed
        self.readings = second_runs(model, choices.strategies)

    def _again(self, node: int) -> bool:
        """Whether an op runs again."""
        return self.choices.strategies[node].mode in SECOND and node in self.readings.runs_at

    def total(self) -> float:
        graph, dims = self.model.graph, self.model.dims
        seconds = sum(
            self.costing.ops.cost(graph.nodes[n], dims.ops[n], s)
            * self.model.runs[n]
            * (2 if self._again(n) else 1)
            for n, s in self.choices.strategies.items()
        )
        for parameter, strategy in zip(graph.parameters, self.choices.parameters, strict=True):
            value = graph.values[parameter.value]
            given = self.model.dims.flat(value.id), dtype_bytes(value.dtype), value.dtype, strategy
            seconds += self.costing.updates.update(*given) + self.costing.updates.ready(*given)
            seconds += self.exposed * self.costing.updates.gather(*given[:2], strategy)
        for (value_id, phase), uses in self.readings.uses.items():
            seconds += self._group(value_id, phase, uses)
        seconds += sum(  # hubs that were chosen for second runs which then were not
            self._change(value, phase, self._produced(value), hub)
            for (value, phase), hub in self.choices.hubs.items()
            if (value, phase) not in self.readings.uses
        )
        if graph.loss is None:
            return seconds
        whole = tuple(REPLICATE for _ in self.costing.sizes)
        root = self.model.roots[graph.loss].value
        return seconds + self._change(root, "forward", self._produced(root), whole)

    def _group(self, value: int, phase: str, uses: list[Use]) -> float:
        if self.model.graph.values[value].is_given:
            return 0.0
        share = self.exposed if phase == "update" or value in self.model.formats else 1.0
        before = self._produced(value)
        hub = self.choices.hubs.get((value, phase), before)
        read = [u for u in uses if not u.again or (u.node is not None and self._again(u.node))]
        seconds = max(self.model.readings(value, use) for use in uses) * self._change(
            value, phase, before, hub
        )
        return share * (
            seconds
            + sum(
                self.model.readings(value, use) * self._change(value, phase, hub, self._read(use))
                for use in read
            )
        )

    def _read(self, use: Use) -> Layout:
        if use.parameter is not None:
            return use.root.layout(self.choices.parameters[use.parameter].updated)
        assert use.node is not None
        return use.root.layout(self.choices.strategies[use.node].operands[use.position])

    def _produced(self, value: int) -> Layout:
        graph = self.model.graph
        writer = graph.values[value].writer
        if writer is None:
            return next(
                s.stored
                for p, s in zip(graph.parameters, self.choices.parameters, strict=True)
                if p.value == value
            )
        return self.choices.strategies[writer].results[graph.nodes[writer].results.index(value)]

    def _change(self, value: int, phase: str, before: Layout, after: Layout) -> float:
        if before == after:
            return 0.0
        itemsize = dtype_bytes(self.model.graph.values[value].dtype)
        return self.costing.messages.layouts(self.model.dims.flat(value), itemsize, phase).cost(
            before, after
        )
