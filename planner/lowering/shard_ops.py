"""An op on a rank's shard: its call, its local shapes and its seconds, as a `Compute`.

Layers repeat, so the parts that all nodes of a class have in common are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cost_models.memory import dtype_bytes
from planner.dims.subdims import OpDims, call_of
from planner.graph.graph import Node, Serial, map_refs
from planner.graph.layout import Layout
from planner.lowering.draft import Draft
from planner.lowering.local_shapes import LocalShapes
from planner.program.operators import torch_constants
from planner.program.program import AGAIN_SUFFIX, Compute, Ref
from planner.rules import local_call
from planner.strategy.costing import Costing
from planner.strategy.strategies import Strategy, shape_of_result

__all__ = ["ShardOps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    """An op on this rank's shard; `args` and `kwargs` still hold the graph's values."""

    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    shapes: tuple[tuple[int, ...], ...]
    nbytes: tuple[int, ...]
    seconds: float


class ShardOps:
    """Adds ops on shards to a draft; `costing` gives the size of an LSTM's reserve, `timing` the
    seconds."""

    def __init__(
        self, local: LocalShapes, draft: Draft, *, costing: Costing, timing: Costing
    ) -> None:
        self.model, self.local, self.draft = local.model, local, draft
        self.costing, self.timing = costing, timing
        self._shards: dict[tuple[int, Layout], _Shard] = {}

    def op(self, node: Node, strategy: Strategy, leaves: Layout, operands: list[int]) -> list[int]:
        """Adds a node's op under a strategy; returns the program values of its results."""
        dims = self.model.dims.ops[node.index]

        def seconds() -> float:
            kernel = self.timing.ops.device_time(node, dims, dims.letter_sizes(strategy.sizes))
            return kernel + self.timing.ops.inner(node, dims, strategy)

        return self._add(node, dims, operands, leaves, seconds)

    def view(self, node: Node, leaves: Layout, source: int) -> int:
        """Adds a node that is a view; returns the program value of its result."""
        dims = self.model.dims.ops[node.index]
        (result,) = self._add(node, dims, [source], leaves, self.timing.ops.view)
        return result

    def _add(
        self,
        node: Node,
        dims: OpDims,
        operands: list[int],
        leaves: Layout,
        seconds: Callable[[], float],
    ) -> list[int]:
        """Adds one op; axis a splits its leaf `leaves[a]`."""
        shard = self._shard(node, dims, leaves, seconds)
        queue = iter(operands)
        args, kwargs = map_refs((shard.args, shard.kwargs), lambda _: Ref(next(queue)))
        assert next(queue, None) is None, node
        alias = operands[0] if dims.signature.kind == "view" and operands else None
        results = [self.draft.new(nbytes, alias) for nbytes in shard.nbytes]
        self.draft.instructions.append(
            Compute(
                id=self.draft.name(self._stem(node)),
                op=shard.op,
                args=args,
                kwargs=kwargs,
                results=tuple(
                    r if value is not None else None
                    for r, value in zip(results, node.results, strict=True)
                ),
                shapes=shard.shapes,
                dtypes=node.result_dtypes,
                kind=dims.signature.kind,
                phase=node.phase,
                path=node.path,
                time=shard.seconds,
            )
        )
        return results

    def _stem(self, node: Node) -> str:
        """The phase, module and name of an op; whether it is the second run of an op of forward."""
        stem = f"{node.phase}.{node.path or 'top'}.{node.op.split('.')[1]}"
        first = self.model.graph.nodes[node.index].phase
        return f"{stem}{AGAIN_SUFFIX}" if node.phase != first else stem

    def _shard(
        self, node: Node, dims: OpDims, leaves: Layout, seconds: Callable[[], float]
    ) -> _Shard:
        """The node's op on this rank: the same for all nodes of a class, except those with serial
        numbers."""
        key = (self.model.ties.node_class[node.index], leaves)
        found = self._shards.get(key)
        if found is None:
            found = self._new_shard(node, dims, leaves, seconds())
            if not any(isinstance(argument, Serial) for argument in node.args):
                self._shards[key] = found
        return found

    def _new_shard(self, node: Node, dims: OpDims, leaves: Layout, seconds: float) -> _Shard:
        sizes = self.local.sizes(dims.sizes, leaves)
        letters = dims.letter_sizes(sizes)
        shapes = tuple(
            shape_of_result(dims, i, letters, whole) for i, whole in enumerate(node.result_shapes)
        )
        local = self.local.call(dims, leaves, letters, shapes)
        op, args, kwargs = local_call(dims.signature, call_of(self.model.graph, node), local)
        nbytes = [
            math.prod(shape) * dtype_bytes(dtype)
            for shape, dtype in zip(shapes, node.result_dtypes, strict=True)
        ]
        for place in dims.signature.opaque:
            nbytes[place] = self.costing.ops.reserve_bytes(node, dims, sizes) or nbytes[place]
        return _Shard(
            op=op,
            args=torch_constants(args),
            kwargs=torch_constants(kwargs),
            shapes=shapes,
            nbytes=tuple(nbytes),
            seconds=seconds,
        )
