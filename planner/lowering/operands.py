"""Operands: every value in the layout in which its reader needs it.

Root value, phase, layout -> program value. A value that is made in another layout is sent through
its hub, once for all that read it in the same layout; views are applied where they are read. A
parameter that is updated in pieces is gathered before its first reading. A value that was not kept
from forward is made again before its first reading in backward.
"""

from __future__ import annotations

from dataclasses import replace

from cost_models.memory import dtype_bytes
from planner.dims.roots import Root
from planner.graph.graph import Node
from planner.graph.layout import REPLICATE, Layout
from planner.lowering.draft import Draft
from planner.lowering.early import SMALL
from planner.lowering.local_shapes import LocalShapes
from planner.lowering.messages import Messages
from planner.lowering.second_runs import SecondRuns
from planner.lowering.shard_ops import ShardOps
from planner.program.program import InputState
from planner.strategy.choices import Choices
from planner.strategy.strategies import Strategy
from planner.strategy.traced_model import Model

__all__ = ["Operands"]

#: In place of a value of the graph, for an input that the graph does not have.
_NO_VALUE = -1


class Operands:
    """The program values of every value so far, by layout. `inputs` are those that have been read,
    with the layouts in which they were."""

    def __init__(
        self,
        choices: Choices,
        local: LocalShapes,
        draft: Draft,
        messages: Messages,
        ops: ShardOps,
    ) -> None:
        self.model, self.choices, self.local, self.draft = local.model, choices, local, draft
        self.messages, self.ops = messages, ops
        self.inputs: dict[tuple[int, Layout], InputState] = {}
        graph = self.model.graph
        self._pieces = dict(zip(graph.inputs, graph.pieces, strict=False))
        #: Root value -> its program value and layout.
        self._made: dict[int, tuple[int, Layout]] = {}
        #: Parameters that nothing has read yet, to be gathered to this layout.
        self._in_pieces: dict[int, Layout] = {}
        #: Those that are being gathered, or have been.
        self._kept_whole: set[int] = set()
        self._delivered: dict[tuple[int, str, Layout], int] = {}
        self._viewed: dict[tuple[int, int], int] = {}
        self._second_runs = SecondRuns(self.model, choices)
        #: Root value -> its program value and layout, as made again in backward.
        self._remade: dict[int, tuple[int, Layout]] = {}
        self._small = _small(self.model, local)

    # --------------------------------------------------------------------------- what makes values

    def hold(self, value: int, made: int, held: Layout, whole: Layout) -> None:
        """Adds a parameter that the step begins with in layout `held` and reads in `whole`."""
        self._made[value] = (made, held)
        if whole != held:
            self._in_pieces[value] = whole
            self._kept_whole.add(value)

    def emit(self, node: Node, strategy: Strategy) -> list[int]:
        """Adds a node's op under a strategy, with the messages and views for its operands; returns
        the program values of its results."""
        operands = [
            self.operand(value, node.phase, seen)
            for value, seen in zip(node.operands, strategy.operands, strict=True)
        ]
        leaves = tuple(o.number if o.kind == "split" else REPLICATE for o in strategy.options)
        results = self.ops.op(node, strategy, leaves, operands)
        cast = node.results[0] if self.model.casts_parameter(node) else None
        if cast is not None:
            self._start_ahead(cast, node.phase)
        return results

    def make(self, node: Node, strategy: Strategy) -> None:
        """Adds a node's op, whose results may be read from here on."""
        self._made |= self._results(node, strategy)

    def _results(self, node: Node, strategy: Strategy) -> dict[int, tuple[int, Layout]]:
        """Adds a node's op; returns the program values and layouts of its results."""
        made = zip(node.results, self.emit(node, strategy), strategy.results, strict=True)
        return {value: (result, layout) for value, result, layout in made if value is not None}

    # ------------------------------------------------------------------------------ what reads them

    def operand(self, value: int, phase: str, seen: Layout) -> int:
        """The program value of graph value `value` in the layout `seen`: its root, delivered, with
        its views applied."""
        root = self.model.roots[value]
        source = self.deliver(root, phase, seen)
        again = phase == "backward" and root.value in self._remade
        return self._through_views(value, source, seen, phase if again else None)

    def deliver(self, root: Root, phase: str, seen: Layout) -> int:
        """The program value that holds a root during `phase`, in the layout that gives its view
        the layout `seen`."""
        value, wanted = root.value, root.layout(seen)
        if self.model.graph.values[value].is_given:
            return self.input(value, wanted)
        source, layout = self._source(value, phase)
        hub = self.choices.hubs.get((value, phase), layout)
        if hub != wanted and (kept := self._kept(value, phase, wanted)) is not None:
            return kept  # nothing would read what is sent to the hub
        source = self._convert(value, phase, source, layout, hub)
        return self._convert(value, phase, source, hub, wanted)

    def input(self, value: int, layout: Layout) -> int:
        """The program value of an input in a layout that is read: each rank loads its own piece."""
        key = (value, layout)
        if key not in self.inputs:
            given = self.model.graph.values[value]
            self.inputs[key] = InputState(
                name=given.name,
                value=self.draft.new(self.local.nbytes(value, layout)),
                subshape=self.model.dims.shapes[value],
                layout=layout,
                dtype=given.dtype,
                kind=given.kind,
                pieces=self._pieces.get(value),
            )
        return self.inputs[key].value

    def scale(self, layout: Layout) -> int:
        """The program value of a loss's scale that no op of the graph reads."""
        dtype = "float32"
        state = InputState(
            name="scale",
            value=self.draft.new(dtype_bytes(dtype)),
            subshape=(),
            layout=layout,
            dtype=dtype,
            kind="scale",
        )
        self.inputs[_NO_VALUE, layout] = state
        return state.value

    def _through_views(self, value: int, source: int, seen: Layout, phase: str | None) -> int:
        """The view `value` of a delivered root, of its own phase or of another."""
        if self.model.roots[value].value == value:
            return source
        key = (value, source)
        if key not in self._viewed:
            writer = self.model.graph.values[value].writer
            assert writer is not None
            node, dims = self.model.graph.nodes[writer], self.model.dims.ops[writer]
            leaves = tuple(dims.results[0][p] if p >= 0 else p for p in seen)
            under = tuple(dims.operands[0].index(p) if p >= 0 else p for p in leaves)
            inner = self._through_views(node.operands[0], source, under, phase)
            self._viewed[key] = self.ops.view(
                node if phase is None else replace(node, phase=phase), leaves, inner
            )
        return self._viewed[key]

    # ---------------------------------------------------------------------------- changes of layout

    def _gathered(self, value: int, phase: str) -> tuple[int, Layout]:
        """The program value of a root value, and its layout. A parameter that is updated in pieces
        and kept whole (ZeRO-1/2) is gathered before its first reading, a layer ahead, the innermost
        axis first."""
        source, layout = self._made[value]
        whole = self._in_pieces.pop(value, layout)
        for step in self.messages.chain(value, "forward", layout, whole):
            source = self.messages.send(value, phase, source, step, asynchronous=True)
            self._start_ahead(value, phase)
            self.draft.once.add(self.draft.instructions[-1].id)
        self._made[value] = (source, whole)
        return self._made[value]

    def _convert(self, value: int, phase: str, source: int, before: Layout, after: Layout) -> int:
        if before == after:
            return source
        key = (value, phase, after)
        if (kept := self._kept(value, phase, after)) is not None:
            return kept
        if key not in self._delivered:
            of_parameter = value in self.model.formats
            beside = of_parameter or phase == "update"
            for step in self.messages.chain(value, phase, before, after):
                source = self.messages.send(value, phase, source, step, asynchronous=beside)
                if of_parameter:
                    self._start_ahead(value, phase)
            self._delivered[key] = source
        return self._delivered[key]

    def _kept(self, value: int, phase: str, layout: Layout) -> int | None:
        """A small value in the layout in which forward read it: for backward it is cheaper to keep
        than to send again."""
        if phase != "backward" or value not in self._small or value in self._remade:
            return None
        return self._delivered.get((value, "forward", layout))

    def _start_ahead(self, value: int, phase: str) -> None:
        """Marks the last instruction, which gathers or casts a parameter."""
        self.draft.start_ahead(self.model.graph.values[self.model.formats[value]].name, phase)

    def _source(self, value: int, phase: str) -> tuple[int, Layout]:
        """The program value that a phase reads a root value from, and its layout. If backward
        reads a second run of its op, adds that, and those of the ops that it depends on."""
        if phase == "backward" and (self._second_runs.of(value) or self._is_recast(value)):
            for node in self._second_runs.needed(value):
                self._remade |= self._results(node, self.choices.strategies[node.index])
            return self._remade[value]
        return self._gathered(value, phase)

    def _is_recast(self, value: int) -> bool:
        """Whether a value is a parameter that is cast again for backward, from the piece that the
        rank holds."""
        writer = self.model.graph.values[value].writer
        if not self.choices.recast or value not in self.model.recastable or writer is None:
            return False
        node, strategy = self.model.graph.nodes[writer], self.choices.strategies[writer]
        if self._read_from_piece(node, strategy):
            self._second_runs.add(value)
        return self._second_runs.of(value)

    def _read_from_piece(self, node: Node, strategy: Strategy) -> bool:
        """Whether backward casts a parameter from the piece that the rank holds, without a
        message."""
        root, (seen,) = self.model.roots[node.operands[0]], strategy.operands
        if root.value in self._kept_whole:
            return False  # it would be kept from forward on, in more bytes than its cast
        stored, read = self._made[root.value][1], root.layout(seen)
        hub = self.choices.hubs.get((root.value, "backward"), stored)
        steps = (
            *self.messages.chain(root.value, "backward", stored, hub),
            *self.messages.chain(root.value, "backward", hub, read),
        )
        return all(step.kind == "slice" for step in steps)


def _small(model: Model, local: LocalShapes) -> set[int]:
    """The values, other than parameters, that backward keeps from forward instead of having them
    sent again."""
    return {
        value.id
        for value in model.graph.values
        if value.id not in model.formats and value.numel * local.itemsize(value.id) <= SMALL
    }
