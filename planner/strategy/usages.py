"""The memory of every choice over time: the usages of the strategy-selection problem.

CostTable -> usages. Held are: parameters in their `updated` layout and optimizer state, at all
times; a parameter that is kept whole, from its first reading to its last; a value, from its writer
to its last reader; a reduced gradient, until the update; the result of a change of layout, while it
is read. Usages that are alike become one, with a profile over time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable

import numpy as np

from cost_models.memory import dtype_bytes
from planner.graph.layout import Layout
from planner.graph.sections import is_accumulate
from planner.solver.problem.pairs import PairUsage
from planner.solver.problem.problem import Array, Usage, spans_of
from planner.strategy.cost_table import CostTable
from planner.strategy.strategies import ParameterStrategy
from planner.strategy.traced_model import Use
from planner.strategy.update_costs import local_numel

__all__ = ["usages"]


#: A copy of a value counts as large if the whole value is more than this share of the limit.
_LARGE = 0.02


def usages(
    table: CostTable, edge_number: dict[tuple[int, int], int], limit: float
) -> tuple[tuple[Usage, ...], tuple[PairUsage, ...]]:
    """The usages of nodes, and those of pairs: the results of changes of layout, which the choices
    at both ends determine. `limit` is the bytes per device."""
    return _Usages(table, edge_number, _LARGE * limit).all()


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
        self.reads: dict[Hashable, tuple[int, list[Layout]]] = {}
        self.last = self._last_readings()

    def all(self) -> tuple[tuple[Usage, ...], tuple[PairUsage, ...]]:
        """All usages; alike ones become one with a profile over time."""
        self._states()
        groups = self.table.model.uses
        by_value: dict[int, list[Use]] = defaultdict(list)
        for (value, phase), uses in groups.items():
            by_value[value] += uses
            self._copies(value, phase, uses)
        for value, uses in by_value.items():
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

    def _looked_at(self, value: int) -> int | None:
        """The root value whose memory a value shares, if the op that made it returns a view that
        has a layout of its own (expand, slice, split); else None."""
        model, writer = self.table.model, self.table.model.graph.values[value].writer
        if writer is None or model.dims.ops[writer].signature.kind != "view":
            return None
        return model.roots[model.graph.nodes[writer].operands[0]].value

    def _last_readings(self) -> dict[int, int]:
        """When each root value, or a view that shares its memory, is read last."""
        last: dict[int, int] = {}
        for (value, _), uses in self.table.model.uses.items():
            last[value] = max(
                [last.get(value, -1), *(use.node for use in uses if use.node is not None)]
            )
        # Views come after the values that they are views of.
        for value in sorted(last, reverse=True):
            under = self._looked_at(value)
            if under is not None:
                last[under] = max(last.get(under, -1), last[value])
        return last

    def _consumed(self, use: Use) -> tuple[int, list[Layout]]:
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

    def _bytes(self, value: int, layouts: list[Layout]) -> Array:
        flat = self.table.model.dims.flat(value)
        itemsize = dtype_bytes(self.table.model.graph.values[value].dtype)
        return np.array(
            [local_numel(flat, x, self.table.costing.sizes) * itemsize for x in layouts],
            dtype=float,
        )

    def _states(self) -> None:
        model, costing = self.table.model, self.table.costing
        for node, members in zip(self.table.parameter_of, model.ties.parameters_of, strict=True):
            value = model.graph.values[model.graph.parameters[members[0]].value]
            flat, itemsize = self.table.model.dims.flat(value.id), dtype_bytes(value.dtype)
            held = [
                float(sum(costing.updates.parameter_bytes(flat, itemsize, value.dtype, s).values()))
                for s in self.table.parameter_strategies[node]
            ]
            self._hold(
                node,
                "state",
                lambda held=held: np.array(held),  # type: ignore[misc]
                0,
                self.horizon,
                len(members),
            )
            kept = [self._kept(flat, itemsize, s) for s in self.table.parameter_strategies[node]]
            if any(kept):
                for member in members:
                    self._whole_in_step(node, model.graph.parameters[member].value, kept)

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
        times = [use.node for use in uses if use.node is not None]
        if times and self.in_microbatches:
            self._hold(node, "whole", lambda: np.array(kept), 0, self.horizon)
        elif times:
            self._hold(node, "whole", lambda: np.array(kept), min(times), self.last[value] + 1)

    def _value(self, value: int, uses: list[Use]) -> None:
        found, table = self.table.model.graph.values[value], self.table
        if found.is_given:
            consumer, after = self._consumed(uses[0])
            self._hold(
                consumer,
                ("input", value),
                lambda: self._bytes(value, after),
                0,
                self.horizon if self.in_microbatches else self.last[value] + 1,
                self.pieces.get(value, 1),
            )
            return
        if found.writer is None:
            return
        produced = table.produced(value)
        assert produced is not None
        last = max(self.last[value], found.writer)
        place = table.model.graph.nodes[found.writer].results.index(value)
        if self._looked_at(value) is None:
            for start, end in self._held(value, uses, found.writer, last + 1):
                self._hold(
                    produced[0],
                    ("result", place),
                    lambda: self._result_bytes(value, place, produced),
                    start,
                    end,
                )
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

    def _held(
        self, value: int, uses: list[Use], start: int, end: int
    ) -> tuple[tuple[int, int], ...]:
        """The times at which a value is held: from its writer to its last reading. A parameter that
        can be cast again for backward is not held between the two phases: if memory is short, it is
        cast again. A sum over microbatches is held from the first of them to the last: as long as
        it is not smaller than its reduced form, that is its largest."""
        if self._is_sum(start):
            return ((0, self.horizon),)
        if value not in self.table.model.recastable:
            return ((start, end),)
        forward = [use.node for use in uses if use.node is not None and use.phase == "forward"]
        backward = [use.node for use in uses if use.node is not None and use.phase == "backward"]
        return (start, max([start, *forward]) + 1), (min(backward), end)

    def _is_sum(self, writer: int) -> bool:
        return is_accumulate(self.table.model.graph.nodes[writer])

    def _result_bytes(self, value: int, place: int, produced: tuple[int, list[Layout]]) -> Array:
        """Bytes of a result under each choice of its writer. The reserve that a kernel keeps for
        its backward has the kernel's own size."""
        writer = self.table.model.graph.values[value].writer
        assert writer is not None
        node, dims = self.table.model.graph.nodes[writer], self.table.model.dims.ops[writer]
        if place not in dims.signature.opaque:
            return self._bytes(value, produced[1])
        kept = [
            self.table.costing.ops.reserve_bytes(node, dims, s.sizes)
            for s in self.table.strategies[produced[0]]
        ]
        return self._bytes(value, produced[1]) if None in kept else np.array(kept, dtype=float)

    def _copies(self, value: int, phase: str, uses: list[Use]) -> None:
        """Adds the usages of changes of layout: a value is then there twice, as it is written and,
        until its last reading in a phase, as it is read. If several ops read it, the copy is that
        of their hub; a further copy for one reader counts only if it may be large."""
        times = [use.node for use in uses if use.node is not None]
        produced = self.table.produced(value)
        if not times or produced is None:
            return
        hub = self.table.hub_of.get((value, phase))
        key = (phase, self.table.model.producer_key(value), hub)
        read = self._consumed(uses[0]) if hub is None else (hub, list(self.table.hub_layouts[hub]))
        self._copy(value, produced, read, key, (min(times), max(times) + 1))
        if hub is not None and self._whole(value) >= self.large:
            for use in uses:
                if use.node is not None:
                    self._copy(
                        value,
                        read,
                        self._consumed(use),
                        (*key, use.position),
                        (use.node, use.node + 1),
                    )

    def _copy(
        self,
        value: int,
        before: tuple[int, list[Layout]],
        after: tuple[int, list[Layout]],
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

    def _whole(self, value: int) -> int:
        return math.prod(self.table.model.dims.flat(value)) * dtype_bytes(
            self.table.model.graph.values[value].dtype
        )
