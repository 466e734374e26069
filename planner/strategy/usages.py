"""The memory of every choice over time: the usages of the strategy-selection problem.

CostTable -> usages. Held are: parameters in their `updated` layout and optimizer state, at all
times; a parameter that is kept whole, from its first reading to its last; a value, from its writer
to its last reader; a reduced gradient, until the update; the result of a change of layout, while it
is read. Usages that are alike become one, with a profile over time. An op that runs again holds its
results in forward, and again from its second run to their last reader in backward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable

import numpy as np

from cost_models.memory import dtype_bytes
from planner.graph.sections import is_accumulate
from planner.solver.problem.pairs import PairUsage
from planner.solver.problem.problem import Array, Usage, spans_of
from planner.strategy.cost_table import CostTable, Layouts
from planner.strategy.held import Held
from planner.strategy.strategies import ParameterStrategy
from planner.strategy.traced_model import Use
from planner.strategy.update_costs import local_numel

__all__ = ["result_bytes", "state_bytes", "usages"]


#: A copy of a value counts as large if the whole value is more than this share of the limit.
_LARGE = 0.02


def usages(
    table: CostTable, edge_number: dict[tuple[int, int], int], limit: float
) -> tuple[tuple[Usage, ...], tuple[PairUsage, ...]]:
    """The usages of nodes, and those of pairs: the results of changes of layout, which the choices
    at both ends determine. `limit` is the bytes per device."""
    return _Usages(table, edge_number, _LARGE * limit).all()


def state_bytes(table: CostTable) -> dict[int, Array]:
    """Bytes that all parameters of a problem node hold between steps, with their optimizer's state,
    under each choice."""
    model, out = table.model, {}
    for node, members in zip(table.parameter_of, model.ties.parameters_of, strict=True):
        value = model.graph.values[model.graph.parameters[members[0]].value]
        given = model.dims.flat(value.id), dtype_bytes(value.dtype), value.dtype
        out[node] = float(len(members)) * np.array(
            [
                float(sum(table.costing.updates.parameter_bytes(*given, s).values()))
                for s in table.parameter_strategies[node]
            ]
        )
    return out


def result_bytes(table: CostTable, value: int) -> Array:
    """Bytes of a result under each choice of its writer's problem node. The reserve that a kernel
    keeps for its backward has the kernel's own size."""
    model, produced = table.model, table.produced(value)
    writer = model.graph.values[value].writer
    assert writer is not None and produced is not None
    node, dims = model.graph.nodes[writer], model.dims.ops[writer]
    if node.results.index(value) in dims.signature.opaque:
        kept = [
            table.costing.ops.reserve_bytes(node, dims, s.sizes)
            for s in table.strategies[produced[0]]
        ]
        if None not in kept:
            return np.array(kept, dtype=float)
    return _bytes(table, value, produced[1])


def _bytes(table: CostTable, value: int, layouts: Layouts) -> Array:
    """Bytes of a value in each layout; none where there is no layout."""
    flat, sizes = table.model.dims.flat(value), table.costing.sizes
    itemsize = dtype_bytes(table.model.graph.values[value].dtype)
    return np.array(
        [0 if x is None else local_numel(flat, x, sizes) * itemsize for x in layouts], dtype=float
    )


class _Usages:
    def __init__(
        self, table: CostTable, edge_number: dict[tuple[int, int], int], large: float
    ) -> None:
        self.large = large
        self.table, self.edge_number = table, edge_number
        self.horizon = len(table.model.graph.nodes) + 1
        self.nodes: dict[tuple[int, Hashable], tuple[Array, Array]] = {}
        self.edges: dict[tuple[int, int, Hashable], tuple[Array, Array]] = {}
        graph = table.model.graph
        self.in_microbatches = graph.microbatches > 1
        #: The batch tensors of which every microbatch reads a piece; all pieces are held.
        self.pieces = {
            value: graph.microbatches
            for value, piece in zip(graph.inputs, graph.pieces, strict=False)
            if piece is not None
        }
        #: Microbatches that wait for backward beside the one that runs, and where its backward begins.
        self.others = table.model.in_flight - 1
        self.turn = next((n.index for n in graph.nodes if n.phase == "backward"), self.horizon)
        self.reads: dict[Hashable, tuple[int, Layouts]] = {}
        self.readings, self.held = table.readings, Held(table)
        #: Parameter -> its casts that may be made again for backward.
        self.casts: dict[int, list[int]] = defaultdict(list)
        for cast in sorted(table.model.recastable):
            self.casts[table.model.formats[cast]].append(cast)

    def all(self) -> tuple[tuple[Usage, ...], tuple[PairUsage, ...]]:
        """All usages; alike ones become one with a profile over time."""
        self._states()
        for (value, phase), uses in self.readings.uses.items():
            self._copies(value, phase, uses)
        for value, uses in self.readings.by_value.items():
            self._value(value, uses)
        nodes = [
            Usage(node=n, nbytes=nbytes, spans=spans_of(profile))
            for (n, _), (nbytes, profile) in self.nodes.items()
        ]
        pairs = [
            PairUsage(edge=self.edge_number[u, v], nbytes=nbytes, spans=spans_of(profile))
            for (u, v, _), (nbytes, profile) in self.edges.items()
        ]
        return tuple(nodes), tuple(pairs)

    def _consumed(self, use: Use) -> tuple[int, Layouts]:
        """`CostTable.consumed`, computed once for uses that are alike."""
        key = self.table.model.consumer_key(use)
        if key not in self.reads:
            self.reads[key] = self.table.consumed(use)
        return self.reads[key]

    def _hold(
        self,
        node: int,
        key: Hashable,
        nbytes: Callable[[], Array],
        start: int,
        end: int,
        times: int = 1,
    ) -> None:
        if (node, key) not in self.nodes:
            self.nodes[node, key] = (nbytes(), np.zeros(self.horizon))
        self.nodes[node, key][1][start:end] += times

    def _bytes(self, value: int, layouts: Layouts) -> Array:
        return _bytes(self.table, value, layouts)

    def _states(self) -> None:
        model, states = self.table.model, state_bytes(self.table)
        for node, members in zip(self.table.parameter_of, model.ties.parameters_of, strict=True):
            value = model.graph.values[model.graph.parameters[members[0]].value]
            flat, itemsize = self.table.model.dims.flat(value.id), dtype_bytes(value.dtype)
            self._hold(node, "state", lambda node=node: states[node], 0, self.horizon)  # type: ignore[misc]
            kept = [self._kept(flat, itemsize, s) for s in self.table.parameter_strategies[node]]
            if any(kept):
                for member in members:
                    self._whole_in_step(node, model.graph.parameters[member].value, kept)
                    self._casts_of_whole(node, model.graph.parameters[member].value, kept)

    def _kept(self, flat: tuple[int, ...], itemsize: int, strategy: ParameterStrategy) -> float:
        """Bytes of a parameter that is gathered and kept in a step (ZeRO-1/2); 0 if it is always
        held in that layout."""
        if strategy.stored == strategy.updated:
            return 0.0
        return float(local_numel(flat, strategy.stored, self.table.costing.sizes) * itemsize)

    def _whole_in_step(self, node: int, value: int, kept: list[float]) -> None:
        """Adds the usage of a gathered parameter from its first reading to its last, which with
        microbatches are those of the first and the last of them."""
        uses = [
            use
            for phase in ("forward", "backward")
            for use in self.table.model.uses.get((value, phase), [])
        ]
        times = self.held.times(uses)
        if times and self.in_microbatches:
            self._hold(node, "whole", lambda: np.array(kept), 0, self.horizon)
        elif times:
            self._hold(node, "whole", lambda: np.array(kept), min(times), self.held.last[value] + 1)

    def _casts_of_whole(self, node: int, parameter: int, kept: list[float]) -> None:
        """Adds the usage, between the phases, of the casts of a gathered parameter: they are kept
        from forward, since the gathered parameter, which has more bytes, is not."""
        values = self.table.model.graph.values
        for value in self.casts.get(parameter, ()):
            share = dtype_bytes(values[value].dtype) / dtype_bytes(values[parameter].dtype)
            uses = self.readings.uses[value, "forward"], self.readings.uses[value, "backward"]
            last, first = max(self.held.times(uses[0])), min(self.held.times(uses[1]))
            self._hold(
                node,
                ("cast", share),
                lambda share=share: share * np.array(kept),  # type: ignore[misc]
                last + 1,
                first,
            )

    def _value(self, value: int, uses: list[Use]) -> None:
        found, table = self.table.model.graph.values[value], self.table
        if found.is_given:
            consumer, after = self._consumed(uses[0])
            self._hold(
                consumer,
                ("input", value),
                lambda: self._bytes(value, after),
                0,
                self.horizon if self.in_microbatches else self.held.last[value] + 1,
                self.pieces.get(value, 1),
            )
            return
        if found.writer is None:
            return
        produced = table.produced(value)
        assert produced is not None
        if self.held.looked_at(value) is None:
            self._result(value, uses, produced)
        for use in uses:
            if use.parameter is not None:
                consumer, after = self._consumed(use)
                self._hold(
                    consumer,
                    "gradient",
                    lambda after=after: self._bytes(value, after),  # type: ignore[misc]
                    found.writer,
                    found.writer + 1 if self._is_sum(found.writer) else self.horizon,
                )

    def _is_of_step(self, writer: int) -> bool:
        """Whether all microbatches share what a node writes: a sum over them, or a parameter's
        cast."""
        node = self.table.model.graph.nodes[writer]
        return is_accumulate(node) or self.table.model.casts_parameter(node)

    def _is_sum(self, writer: int) -> bool:
        return is_accumulate(self.table.model.graph.nodes[writer])

    def _result(self, value: int, uses: list[Use], produced: tuple[int, Layouts]) -> None:
        """Adds the usages of a result: one for each mode of its writer."""
        graph, strategies = self.table.model.graph, self.table.strategies[produced[0]]
        writer = graph.values[value].writer
        assert writer is not None
        place = graph.nodes[writer].results.index(value)
        modes = (s.mode for s in strategies)
        for mode, held in self.held.by_mode(modes, value, uses, writer).items():
            chosen = np.array([s.mode == mode for s in strategies], dtype=float)
            spans = [(start, end, 1) for start, end in held]
            waits = writer < self.turn and not self._is_of_step(writer)
            if waits and self.others and any(a < self.turn < b for a, b, _ in spans):
                spans.append((0, self.horizon, self.others))
            for start, end, times in spans:
                self._hold(
                    produced[0],
                    ("result", place, mode),
                    lambda chosen=chosen: chosen * result_bytes(self.table, value),  # type: ignore[misc]
                    start,
                    end,
                    times,
                )

    def _copies(self, value: int, phase: str, uses: list[Use]) -> None:
        """Adds the usages of changes of layout: a value is then there twice, as it is written and,
        until its last reading in a phase, as it is read. If several ops read it, the copy is that
        of their hub; a further copy for one reader counts only if it may be large."""
        times, produced = self.held.times(uses), self.table.produced(value, phase)
        if not times or produced is None:
            return
        hub = self.table.hub_of.get((value, phase))
        key = (phase, self.table.model.producer_key(value), hub)
        read = self._consumed(uses[0]) if hub is None else (hub, list(self.table.hub_layouts[hub]))
        self._copy(value, produced, read, key, (min(times), max(times) + 1))
        if hub is not None and self.table.model.whole_bytes(value) >= self.large:
            for use in uses:
                for at in self.held.times([use]):
                    self._copy(
                        value,
                        read,
                        self._consumed(use),
                        (*key, use.position),
                        (at, at + 1),
                    )

    def _copy(
        self,
        value: int,
        before: tuple[int, Layouts],
        after: tuple[int, Layouts],
        key: Hashable,
        span: tuple[int, int],
    ) -> None:
        u, v = before[0], after[0]
        if u == v:
            return
        where = (min(u, v), max(u, v), key)
        if where not in self.edges:
            changed = np.array([[a != b for b in after[1]] for a in before[1]], dtype=float)
            nbytes = changed * self._bytes(value, after[1])[None, :]
            self.edges[where] = (nbytes if u < v else nbytes.T, np.zeros(self.horizon))
        self.edges[where][1][span[0] : span[1]] += 1
