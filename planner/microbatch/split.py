"""The graph of one microbatch: every op as it runs on a microbatch's piece of the batch.

Graph of the whole batch, sub-dims, number of microbatches -> Graph. Constants such as the divisor
of a mean stay those of the whole batch, so sums over microbatches are the whole batch's. Nodes
stand in the order of their sections: totals first, then the microbatch, then what reads whole sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from cost_models.errors import unknown_name
from planner.dims.subdims import OpDims, SubDims, call_of
from planner.dims.ties import pattern_of
from planner.graph.graph import Graph, Node, Ref, Value, map_refs
from planner.graph.layout import PARTIAL_SUM, REPLICATE, Mesh
from planner.graph.sections import ACCUMULATE
from planner.microbatch.numbered import in_sections
from planner.microbatch.possible import check_microbatches, samples_of
from planner.microbatch.refused import PER_MICROBATCH, CannotSplit, across
from planner.microbatch.walk import OWN, Walked, walk
from planner.rules import local_call
from planner.strategy.strategies import local_of, shape_of_result

__all__ = ["check_globs", "microbatch_graph"]


def microbatch_graph(
    graph: Graph, dims: SubDims, microbatches: int, per_microbatch: Sequence[str] = ()
) -> Graph:
    """The graph of one of `microbatches` equal parts of the batch; `graph` itself if there is one.
    Modules that match a glob of `per_microbatch` may take statistics over each microbatch.

    Raises BadValue for a number that the batch cannot be cut into, and CannotSplit, naming the op,
    if the model looks at samples of several microbatches at once.
    """
    if microbatches == 1:
        return graph
    check_microbatches(graph, dims, microbatches)
    walked = walk(graph, dims, lambda path: any(_matches(path, glob) for glob in per_microbatch))
    return _Split(graph, dims, walked, microbatches).graph()


def check_globs(graph: Graph, per_microbatch: Sequence[str]) -> None:
    """Raises UnknownName for a glob that matches no module of the whole model."""
    paths = {node.path for node in graph.nodes}
    for glob in per_microbatch:
        if not any(_matches(path, glob) for path in paths):
            shown = {pattern_of(path) for path in paths if path}
            raise unknown_name(f"module for {PER_MICROBATCH}", glob, sorted(shown))


def _matches(path: str, glob: str) -> bool:
    """Whether a module, or one that it is in, matches."""
    return fnmatchcase(path, glob) or fnmatchcase(path, f"{glob}.*")


class _Split:
    """Makes the nodes of one microbatch; values keep their numbers, further ones follow them."""

    def __init__(self, graph: Graph, dims: SubDims, walked: Walked, num: int) -> None:
        self.whole, self.dims, self.walked, self.num = graph, dims, walked, num
        self.mesh = Mesh(("microbatch",), (num,))
        self.values = {v.id: v for v in graph.values}
        self.nodes: list[Node] = []
        self.sums: dict[int, int] = {}
        self.cuts: dict[tuple[int, int], int] = {}
        self.path_of: dict[int, str] = {}
        self.key = next((v.id for v in graph.values if v.kind == "key"), None)

    def graph(self) -> Graph:
        """The graph of one microbatch."""
        whole = self.whole
        samples = samples_of(whole, self.dims)
        for v in samples:
            batch, *rest = whole.values[v].shape
            self.values[v] = replace(self.values[v], shape=(batch // self.num, *rest))
        if self.key is not None:
            self.values[self.key] = replace(self.values[self.key], shape=(2,))
        for node in whole.nodes:
            self._node(node)
        made = replace(
            whole,
            loss=None if whole.loss is None else self._output(whole.loss, "forward", "the loss"),
            reported=tuple(
                (name, self._output(v, "forward", f"the reported {name!r}"))
                for name, v in whole.reported
            ),
            parameters=tuple(
                replace(p, gradient=self._output(p.gradient, "update", f"parameter {p.name!r}"))
                for p in whole.parameters
            ),
            updates=tuple((buffer, self._update(buffer, new)) for buffer, new in whole.updates),
            carried=self.carried,
            microbatches=self.num,
            pieces=tuple(
                (1, whole.values[v].shape[0] // self.num) if v in samples else None
                for v in whole.inputs
            ),
        )
        return in_sections(replace(made, nodes=tuple(self.nodes)), self.values)

    # ---------------------------------------------------------------------------------------- nodes

    def _node(self, node: Node) -> None:
        operands = tuple([self._operand(node, p, v) for p, v in enumerate(node.operands)])
        leaf, op = self.walked.leaves[node.index], self.dims.ops[node.index]
        made = node if leaf is None else self._cut_node(node, op, leaf)
        if operands != node.operands:
            queue = iter(operands)
            args, kwargs = map_refs((made.args, made.kwargs), lambda _: Ref(next(queue)))
            made = replace(made, args=args, kwargs=kwargs)
        self.nodes.append(made)
        for value, shape in zip(made.results, made.result_shapes, strict=True):
            if value is not None:
                if leaf is not None:
                    self.values[value] = replace(self.values[value], shape=shape)
                self.path_of[value] = node.path

    def _cut_node(self, node: Node, op: OpDims, leaf: int) -> Node:
        """The node as it runs on the piece of one microbatch, the same for all of them."""
        sizes = tuple(s // self.num if i == leaf else s for i, s in enumerate(op.sizes))
        letters = op.letter_sizes(sizes)
        shapes = tuple(
            shape_of_result(op, i, letters, whole) for i, whole in enumerate(node.result_shapes)
        )
        call, own = call_of(self.whole, node), node.index in self.walked.own
        leaves = (REPLICATE if own else leaf,)
        local = local_of(op, leaves, self.mesh, self.num - 1, letters, shapes)
        if op.signature.placed:  # the step's key says which microbatch it is
            local = replace(local, split={})
        name, args, kwargs = local_call(op.signature, call, local)
        if local.offsets:
            first = local_of(op, leaves, self.mesh, 0, letters, shapes)
            if local_call(op.signature, call, first) != (name, args, kwargs):
                raise across(self.whole, node, statistics=False)
        if op.signature.placed:
            kwargs = (*kwargs, ("samples", self._samples(op, leaf)))
        return replace(node, op=name, args=args, kwargs=kwargs, result_shapes=shapes)

    def _samples(self, op: OpDims, leaf: int) -> tuple[int, int, int]:
        """The dim of the first result that holds samples, and the lengths of its runs in the whole
        batch and here."""
        letter = op.letter[leaf]
        dim = next(d for d, letters in enumerate(op.signature.results[0]) if letter in letters)
        inner = (s for i, s in enumerate(op.sizes) if i > leaf and op.letter[i] == letter)
        whole = op.sizes[leaf] * math.prod(inner)
        return dim, whole, whole // self.num

    # ------------------------------------------------------------------------------------- operands

    def _operand(self, node: Node, position: int, value: int) -> int:
        """The value that an operand reads: its own, or another form of it."""
        at, form = (node.index, position), value
        if at in self.walked.summed:
            form = self._sum(value, node.phase)
        if at not in self.walked.cut:
            return form
        sub_dim = self.walked.cut[at]
        if (form, sub_dim) not in self.cuts:
            self.cuts[form, sub_dim] = self._cut(form, value, sub_dim, node.phase)
        return self.cuts[form, sub_dim]

    def _sum(self, value: int, phase: str) -> int:
        """The sum of a value over all microbatches."""
        if value not in self.sums:
            ahead = value in self.walked.totals
            self.sums[value] = self._add(
                ACCUMULATE,
                (Ref(value),),
                (("ahead", True),) if ahead else (),
                self.values[value].shape,
                "forward" if ahead or phase == "forward" else "update",
            )
        return self.sums[value]

    def _cut(self, form: int, value: int, sub_dim: int, phase: str) -> int:
        """One microbatch's piece of a value, or of its sum, along the value's flat sub-dim."""
        if self.key is None:
            self.key = self._new(shape=(2,), dtype="int64", kind="key", name="key")
        shape, at = list(self.values[form].shape), sub_dim
        dim, sizes = 0, self.dims.shapes[value]
        while at >= len(sizes[dim]):
            at, dim = at - len(sizes[dim]), dim + 1
        whole = math.prod(sizes[dim][at:])
        shape[dim] //= self.num
        args = (Ref(form), Ref(self.key), dim, whole, whole // self.num)
        return self._add("shardwright.piece", args, (), tuple(shape), phase)

    def _add(
        self,
        op: str,
        args: tuple[Any, ...],
        kwargs: tuple[tuple[str, Any], ...],
        shape: tuple[int, ...],
        phase: str,
    ) -> int:
        """Adds a node of ours, in the module that makes its first operand; returns its result."""
        source = self.values[args[0].id]
        path = "" if source.writer is None else self.path_of[source.id]
        result = self._new(shape=shape, dtype=source.dtype, kind="activation", name="")
        self.path_of[result] = path
        self.nodes.append(
            Node(
                index=-1,
                op=op,
                args=args,
                kwargs=kwargs,
                results=(result,),
                result_shapes=(shape,),
                result_dtypes=(source.dtype,),
                phase=phase,
                path=path,
            )
        )
        return result

    def _new(self, *, shape: tuple[int, ...], dtype: str, kind: str, name: str) -> int:
        """A further value."""
        number = len(self.values)
        writer = -1 if kind == "activation" else None
        self.values[number] = Value(
            id=number, shape=shape, dtype=dtype, kind=kind, name=name, writer=writer
        )
        return number

    # -------------------------------------------------------------------------------------- outputs

    def _output(self, value: int, phase: str, what: str) -> int:
        """An output of the whole step: the sum, if each microbatch has a term of it."""
        where = self.walked.values[value].where
        if where >= 0 or where == OWN:
            raise CannotSplit(
                f"{what} is another in every microbatch, and no sum of theirs: use --microbatches 1"
            )
        return self._sum(value, phase) if where == PARTIAL_SUM else value

    def _update(self, buffer: int, new: int) -> int:
        """The new value of a buffer, after each microbatch or after all."""
        name = self.whole.values[buffer].name
        if buffer in self.carried:
            return new
        return self._output(new, "update", f"the new value of buffer {name!r}")

    @cached_property
    def carried(self) -> tuple[int, ...]:
        """The buffers that every microbatch changes in turn: those of modules that take
        statistics over each microbatch."""
        modules = {self.whole.nodes[n].path for n in self.walked.own}
        return tuple(
            buffer
            for buffer, new in self.whole.updates
            if self.whole.values[buffer].name.rpartition(".")[0] in modules
            and self.walked.values[new].where in (OWN, REPLICATE)
        )
