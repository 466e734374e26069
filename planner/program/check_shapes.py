"""Checks that results of frequent ops have the shapes and dtypes that their operands imply."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from planner.graph.graph import Graph, Node, Ref, Value

__all__ = ["kind_of", "name_of", "signature_faults"]

Shape = tuple[int, ...]


def name_of(node: Node) -> str:
    """The node in a fault's words."""
    return f"node {node.index} ({node.op})"


def kind_of(value: Value) -> str:
    """The dtype and shape of a value, as a fault names them."""
    return f"{value.dtype}{list(value.shape)}"


def signature_faults(graph: Graph, node: Node) -> Iterator[str]:
    """Results of frequent ops whose shape or dtype does not follow from their operands."""
    rule = _SHAPES.get(node.op)
    if rule is None or any(
        type(argument) is not Ref for argument in node.args[: _OPERANDS.get(node.op, 1)]
    ):
        return
    operands = [graph.values[value] for value in node.operands]
    due = rule([value.shape for value in operands], node.args)
    if due != node.result_shapes[0]:
        words = ", ".join(map(kind_of, operands))
        instead = "the op does not take them" if due is None else f"not {list(due)}"
        yield f"{name_of(node)} of {words} makes {list(node.result_shapes[0])}: {instead}"
    elif node.op in _KEEPS_DTYPE and {value.dtype for value in operands} != {node.result_dtypes[0]}:
        yield f"{name_of(node)} of {', '.join(map(kind_of, operands))} makes {node.result_dtypes[0]}"


def _same(shapes: list[Shape], args: tuple[Any, ...]) -> Shape | None:
    return shapes[0]


def _product(shapes: list[Shape], args: tuple[Any, ...]) -> Shape | None:
    *batch, m, k = shapes[0]
    return (*batch, m, shapes[1][-1]) if shapes[1][:-1] == (*batch, k) else None


def _permuted(shapes: list[Shape], args: tuple[Any, ...]) -> Shape | None:
    return (
        tuple(shapes[0][dim] for dim in args[1])
        if sorted(args[1]) == [*range(len(shapes[0]))]
        else None
    )


def _reshaped(shapes: list[Shape], args: tuple[Any, ...]) -> Shape | None:
    return tuple(args[1]) if math.prod(shapes[0]) == math.prod(args[1]) else None


def _expanded(shapes: list[Shape], args: tuple[Any, ...]) -> Shape | None:
    return (
        tuple(args[1]) if _broadcast([shapes[0], tuple(args[1])], args) == tuple(args[1]) else None
    )


def _broadcast(shapes: list[Shape], args: tuple[Any, ...]) -> Shape | None:
    """The shape to which `shapes` broadcast; None if they do not."""
    rank = max(map(len, shapes))
    columns = list(zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True))
    sizes = tuple(next((size for size in column if size != 1), 1) for column in columns)
    return (
        sizes
        if all({*column} <= {1, size} for column, size in zip(columns, sizes, strict=True))
        else None
    )


#: The shape of the first result, from the shapes of the operands and the arguments; None if the op
#: does not accept them.
_SHAPES: dict[str, Callable[[list[Shape], tuple[Any, ...]], Shape | None]] = {
    "aten.mm.default": _product,
    "aten.bmm.default": _product,
    "aten.permute.default": _permuted,
    "shardwright.reshape": _reshaped,
    "aten.expand.default": _expanded,
    **dict.fromkeys(
        ("aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor", "aten.div.Tensor"), _broadcast
    ),
    **dict.fromkeys(
        ("aten._to_copy.default", "aten.clone.default", "aten.relu.default", "aten.gelu.default"),
        _same,
    ),
    **dict.fromkeys(
        ("aten.tanh.default", "aten.sigmoid.default", "aten.silu.default", "aten.neg.default"),
        _same,
    ),
}
_KEEPS_DTYPE = {
    "aten.mm.default",
    "aten.bmm.default",
    "aten.permute.default",
    "shardwright.reshape",
    "aten.expand.default",
}
#: The ops of which more than the first argument must be a tensor.
_OPERANDS = dict.fromkeys(("aten.mm.default", "aten.bmm.default"), 2)
