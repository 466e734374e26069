"""A traced model, independent of the mesh: its graph, sub-dims, ties and views, and the readers of
each value."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from cost_models.memory import dtype_bytes
from planner.dims.roots import Root, is_view
from planner.dims.subdims import SubDims
from planner.dims.ties import Ties, block_of
from planner.graph.biases import adds_a_bias
from planner.graph.graph import Graph, Node, Parameter
from planner.graph.sections import RECEIVE, SEND, is_accumulate, repeats_of
from planner.strategy.strategies import AGAIN, Option

__all__ = ["Model", "Pins", "Use", "UseGroups", "Uses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One reading of a root value: by operand `position` of graph node `node`, or as the
    gradient of parameter `parameter`. `again`: by the node's second run, in backward."""

    root: Root
    phase: str
    node: int | None = None
    position: int = 0
    parameter: int | None = None
    again: bool = False


#: Readings by (root value, phase); and those that are alike, by what they have in common.
Uses = dict[tuple[int, str], list[Use]]
UseGroups = dict[tuple[Hashable, str, tuple[Hashable, ...]], list[tuple[int, str, list[Use]]]]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A traced model, computed once and shared by the tables of all meshes. If the step runs in
    microbatches, `graph` is that of one of them, and `whole` the traced one; if it is a pipeline
    stage, what forward leaves for backward is there for as many as are `in_flight`."""

    graph: Graph
    dims: SubDims
    ties: Ties
    roots: tuple[Root, ...]
    whole: Graph | None = None
    in_flight: int = 1

    @cached_property
    def repeats(self) -> tuple[int, ...]:
        """How often a step runs every node: once for each microbatch, or once."""
        return repeats_of(self.graph)

    @cached_property
    def runs(self) -> tuple[int, ...]:
        """How often a step pays for every node. Of a sum over microbatches the first term costs
        nothing: it becomes the sum."""
        return tuple(
            times - is_accumulate(node)
            for node, times in zip(self.graph.nodes, self.repeats, strict=True)
        )

    def readings(self, value: int, use: Use) -> int:
        """How often a step brings a root value into the layout of one of its uses. What is whole
        before the first microbatch, or after the last, is brought there once."""
        writer = self.graph.values[value].writer
        once = writer is not None and is_accumulate(self.graph.nodes[writer])
        return 1 if use.node is None or once else self.repeats[use.node]

    @cached_property
    def summed(self) -> dict[int, int]:
        """The nodes that add up a parameter's gradient over microbatches -> the parameter's
        value."""
        return {
            writer: parameter.value
            for parameter in self.graph.parameters
            if (writer := self.graph.values[parameter.gradient].writer) is not None
            and is_accumulate(self.graph.nodes[writer])
        }

    @cached_property
    def parameter_index(self) -> dict[int, int]:
        """Value of a parameter -> the parameter's number."""
        return {parameter.value: index for index, parameter in enumerate(self.graph.parameters)}

    @cached_property
    def batch_atoms(self) -> frozenset[int]:
        """The atoms of dim 0 of the batch tensors."""
        dims = self.dims
        received = frozenset(dims.atoms[v][dims.first(v, dim)] for v, dim in self.graph.samples)
        return received | frozenset(
            a
            for v in self.graph.inputs
            for a in dims.atoms[v][: len(dims.shapes[v][0]) if dims.shapes[v] else 0]
        )

    @cached_property
    def expert_atoms(self) -> frozenset[int]:
        """The atoms of experts: the batch dim of a batched product with a parameter, which has one
        matrix for each expert."""
        out = set()
        for node in self.graph.nodes:
            if node.op == "aten.bmm.default" and any(map(self._is_parameter, node.operands)):
                op = self.dims.ops[node.index]
                out |= {
                    atom for atom, letter in zip(op.atoms, op.letter, strict=True) if letter == 0
                }
        return frozenset(out)

    def _is_parameter(self, value: int) -> bool:
        return self.roots[value].value in self.formats

    @cached_property
    def formats(self) -> dict[int, int]:
        """Root values that are a parameter, or a parameter cast for computing -> the parameter's
        value. Like the parameter, a cast one may be in pieces and be gathered ahead of where it is
        read."""
        found = {parameter.value: parameter.value for parameter in self.graph.parameters}
        for node in self.graph.nodes:
            if node.op == "aten._to_copy.default" and node.results[0] is not None:
                root = self.roots[node.operands[0]].value
                if root in found:
                    found[node.results[0]] = found[root]
        return found

    @cached_property
    def recastable(self) -> frozenset[int]:
        """The parameters cast to a shorter format in forward and read again in backward: they may
        be cast again for backward, unless a view of them (a slice) is read too."""
        found = {
            n.results[0] for n in self.graph.nodes if n.phase == "forward" and self.shortens(n)
        }
        looking = (
            n
            for n in self.graph.nodes
            if self.dims.ops[n.index].signature.kind == "view" and not is_view(self.dims, n.index)
        )
        found -= {self.roots[value].value for node in looking for value in node.operands}
        return frozenset(
            value for value in found if value is not None and (value, "backward") in self.uses
        )

    def shortens(self, node: Node) -> bool:
        """Whether the op casts a parameter to a format of fewer bytes."""
        values = self.graph.values
        return self.casts_parameter(node) and dtype_bytes(node.result_dtypes[0]) < dtype_bytes(
            values[node.operands[0]].dtype
        )

    def casts_parameter(self, node: Node) -> bool:
        """Whether the op brings a parameter to another format."""
        return bool(node.results) and node.results[0] in self.formats

    def may_have_mode(self, node: Node) -> bool:
        """Whether a node may have any mode but `kept`: an op of forward that is no view. A
        parameter that is cast is kept, or cast again as `Choices.recast` says. What crosses between
        stages does so once."""
        return (
            node.phase == "forward"
            and not is_view(self.dims, node.index)
            and not self.casts_parameter(node)
            and node.op not in (RECEIVE, SEND)
        )

    def whole_bytes(self, value: int) -> int:
        """Bytes of a value, not split."""
        return math.prod(self.dims.flat(value)) * dtype_bytes(self.graph.values[value].dtype)

    @cached_property
    def of_batch_alone(self) -> frozenset[int]:
        """The nodes that read only batch tensors, or results of such nodes."""
        values = {v.id for v in self.graph.values if v.kind == "input"}
        found = set()
        for node in self.graph.nodes:
            if node.operands and values.issuperset(node.operands):
                values.update(v for v in node.results if v is not None)
                found.add(node.index)
        return frozenset(found)

    @cached_property
    def roles(self) -> tuple[Hashable, ...]:
        """For every node, which of its leaves are samples and which are experts, and whether it
        reads only the batch."""
        alone = self.of_batch_alone
        return tuple(
            (
                tuple((atom in self.batch_atoms, atom in self.expert_atoms) for atom in op.atoms),
                index in alone,
            )
            for index, op in enumerate(self.dims.ops)
        )

    @cached_property
    def has_checkpoints(self) -> bool:
        """Whether the model runs ops inside of a `torch.utils.checkpoint`."""
        return any(node.checkpoint for node in self.graph.nodes)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """For every node, the block in which it runs again: its layer, empty if no layer owns it.
        In a model without layers, a child of the root module."""
        paths = [node.path for node in self.graph.nodes]
        layered = {path: block_of(path) for path in paths}
        if not any(layered.values()):
            layered = {path: path.partition(".")[0] for path in paths}
        return tuple(layered[path] for path in paths)

    @cached_property
    def crossing(self) -> frozenset[int]:
        """The root values that a block writes and another block, or the model outside of blocks,
        reads in forward, such as the residual stream. Under pins they are kept for backward even if
        their writer runs again: otherwise a later block's backward would run the blocks before it
        again, and hold all that they compute. Values that no block writes do not count."""
        return frozenset(
            value
            for (value, phase), uses in self.uses.items()
            if phase == "forward" and self._is_read_outside(value, uses)
        )

    def _is_read_outside(self, value: int, uses: list[Use]) -> bool:
        writer = self.graph.values[value].writer
        block = "" if writer is None else self.blocks[writer]
        blocks = {self.blocks[use.node] for use in uses if use.node is not None}
        return bool(block) and blocks != {block}

    @cached_property
    def uses(self) -> Uses:
        """All readings of root values, by (root value, phase), in order."""
        found: Uses = defaultdict(list)
        for node in self.graph.nodes:
            if is_view(self.dims, node.index):
                continue
            for position, value in enumerate(node.operands):
                root = self.roots[value]
                found[root.value, node.phase].append(
                    Use(root=root, phase=node.phase, node=node.index, position=position)
                )
        for index, parameter in enumerate(self.graph.parameters):
            root = self.roots[parameter.gradient]
            found[root.value, "update"].append(Use(root=root, phase="update", parameter=index))
        return dict(found)

    @cached_property
    def use_groups(self) -> UseGroups:
        """All readings, `grouped`."""
        return self.grouped(self.uses)

    def grouped(self, readings: Uses) -> UseGroups:
        """The readings of values by phase, grouped: readings are alike if writers are tied and
        readers too. Values from outside the step are read in any layout, and left out."""
        groups: UseGroups = defaultdict(list)
        for (value, phase), uses in readings.items():
            producer = self.producer_key(value)
            if producer is not None:
                groups[producer, phase, tuple(map(self.consumer_key, uses))].append(
                    (value, phase, uses)
                )
        return dict(groups)

    def producer_key(self, value: int) -> Hashable:
        """The key that root values must share to be alike: their writer's class and which of its
        results they are, or their parameter's class."""
        found = self.graph.values[value]
        if found.writer is None:
            return (
                ("parameter", self.ties.parameter_class[self.parameter_index[value]])
                if found.kind == "parameter"
                else None
            )
        return (
            self.ties.node_class[found.writer],
            self.graph.nodes[found.writer].results.index(value),
        )

    def consumer_key(self, use: Use) -> Hashable:
        """The key that uses must share to be alike."""
        if use.parameter is not None:
            return ("update", self.ties.parameter_class[use.parameter], use.root.places)
        assert use.node is not None
        key = (self.ties.node_class[use.node], use.position, use.root.places)
        return (*key, AGAIN) if use.again else key

    @cached_property
    def trained_by(self) -> frozenset[int]:
        """The nodes on which some gradient depends; results of the others are only reported, or
        kept for the next step."""
        wanted = {parameter.gradient for parameter in self.graph.parameters}
        found = set()
        for node in reversed(self.graph.nodes):
            if not wanted.isdisjoint(node.results):
                wanted.update(node.operands)
                found.add(node.index)
        return frozenset(found)

    @cached_property
    def may_be_joined(self) -> frozenset[int]:
        """The nodes that lowering may remove: additions of a bias that are joined to its
        product."""
        return frozenset(node.index for node in self.graph.nodes if adds_a_bias(self.graph, node))

    @cached_property
    def num_views(self) -> int:
        """The number of views that every step makes, under any choice: those that an op, the
        update or the loss reads."""
        graph = self.graph
        read = [
            v
            for n in graph.nodes
            if n.index not in self.may_be_joined and not is_view(self.dims, n.index)
            for v in n.operands
        ]
        seen: set[int] = set()
        loss = () if graph.loss is None else (graph.loss,)
        for value in (*read, *(p.gradient for p in graph.parameters), *loss):
            while self.roots[value].value != value:
                writer = graph.values[value].writer
                assert writer is not None
                if writer in seen:
                    break
                seen.add(writer)
                (value,) = graph.nodes[writer].operands
        return sum(self.repeats[writer] for writer in seen)

    @cached_property
    def cast_gradients(self) -> frozenset[int]:
        """Root values on the way to a parameter's gradient, from which only casts and sums over
        microbatches lead to it, in another format than the gradient's: ranks sum it in its own."""
        readers: dict[int, int] = defaultdict(int)
        for (value, _), uses in self.uses.items():
            readers[value] += len(uses)
        values, found = self.graph.values, set()
        for parameter in self.graph.parameters:
            root = self.roots[parameter.gradient].value
            dtype = values[root].dtype
            while (before := self._before_cast_or_sum(root)) is not None and readers[before] == 1:
                root = before
                if values[root].dtype != dtype and values[root].writer is not None:
                    found.add(root)
        return frozenset(found)

    def _before_cast_or_sum(self, value: int) -> int | None:
        """The root value that a root value is a cast of, or the sum of over microbatches; None if
        it is neither."""
        writer = self.graph.values[value].writer
        node = None if writer is None else self.graph.nodes[writer]
        if node is None or not (node.op == "aten._to_copy.default" or is_accumulate(node)):
            return None
        return self.roots[node.operands[0]].value


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """The options that the user allows for node n on axis a, and for parameter p on axis a; the
    same for tied nodes with the same `alike`. `again` says, for every op of forward on whose mode a
    pin decides, whether it is to run again in backward; `modes` are those of a model, if all other
    ops are kept, without those of kept ops."""

    op: Callable[[Node, int, Option], bool] = lambda node, axis, option: True
    alike: Callable[[Node], Hashable] = lambda node: node.index
    parameter: Callable[[Parameter, int, Option], bool] = lambda parameter, axis, option: True
    again: Mapping[int, bool] = field(default_factory=dict)
    modes: Callable[[Model], Mapping[int, str]] = lambda model: {}
