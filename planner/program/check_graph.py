"""The checker of a `Graph`: values are written before they are read and by one node, shapes and
dtypes are those of the ops' results, and every node is read.

Graph -> faults, one line each, which names the node or value. Frequent ops are checked by their
signatures; `called_faults` runs every distinct call on fake tensors, which takes about as long as
tracing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.fx

from planner.graph.graph import Graph, Node, Ref, Value, map_refs
from planner.graph.layout import Mesh, SubShape
from planner.program.dry import Failure, first_failure
from planner.program.operators import is_overload, torch_constants
from planner.program.program import Compute, InputState, Program
from planner.program.program import Ref as ProgramRef

__all__ = ["called_faults", "dims_faults", "graph_faults", "lint_faults"]

Shape = tuple[int, ...]

_GIVEN = ("parameter", "buffer", "input", "key")
_PHASES = ("forward", "backward")


def graph_faults(graph: Graph) -> Iterator[str]:
    """All faults of a graph except those that only calling its ops shows."""
    yield from _number_faults(graph)
    yield from _value_faults(graph)
    unknown = [*_read_faults(graph)]
    yield from unknown
    if not unknown:  # else some values have no shape
        for node in graph.nodes:
            unlike = [*_result_faults(graph, node)]
            yield from unlike or _signature_faults(graph, node)
        yield from _dead_faults(graph)
        yield from _given_faults(graph)
        yield from _output_faults(graph)


def _name(node: Node) -> str:
    return f"node {node.index} ({node.op})"


def _number_faults(graph: Graph) -> Iterator[str]:
    for place, node in enumerate(graph.nodes):
        if node.index != place:
            yield f"node {place} ({node.op}) has index {node.index}"
        if node.phase not in _PHASES:
            yield f"node {place} ({node.op}) is of phase {node.phase!r}: forward or backward"
    for place, value in enumerate(graph.values):
        if value.id != place:
            yield f"value {place} has id {value.id}"


def _value_faults(graph: Graph) -> Iterator[str]:
    """Values that do not have exactly the writer that they name, or that are given and have
    one."""
    writers: dict[int, list[int]] = {}
    for place, node in enumerate(graph.nodes):
        for result in node.results:
            if result is not None:
                writers.setdefault(result, []).append(place)
    for place, value in enumerate(graph.values):
        found = writers.get(place, [])
        if value.kind in _GIVEN:
            if found or value.writer is not None:
                yield f"value {place}, a {value.kind}, is written by node {found[0] if found else value.writer}"
        elif value.kind != "activation":
            yield f"value {place} is a {value.kind!r}: activation or {', '.join(_GIVEN)}"
        elif found != [value.writer]:
            yield f"value {place} names node {value.writer} as its writer, written by {found or 'none'}"


def _read_faults(graph: Graph) -> Iterator[str]:
    """Operands and outputs of the step that do not exist or are not written before."""
    for place, node in enumerate(graph.nodes):
        for result in node.results:
            if result is not None and not 0 <= result < len(graph.values):
                yield f"{_name(node)} writes value {result}, there are {len(graph.values)}"
        for value in node.operands:
            if not 0 <= value < len(graph.values):
                yield f"{_name(node)} reads value {value}, there are {len(graph.values)}"
                continue
            writer = graph.values[value].writer
            if writer is not None and writer >= place:
                yield f"{_name(node)} reads value {value}, which node {writer} writes later"
    for name, value in _outputs(graph):
        if not 0 <= value < len(graph.values):
            yield f"{name} is value {value}, there are {len(graph.values)}"


def _outputs(graph: Graph) -> Iterator[tuple[str, int]]:
    """The outputs of the step, by name."""
    yield "the loss", graph.loss
    yield from ((f"reported {name!r}", value) for name, value in graph.reported)
    yield from (
        (f"the gradient of {parameter.name!r}", parameter.gradient)
        for parameter in graph.parameters
    )
    yield from ((f"the new value of buffer {buffer}", new) for buffer, new in graph.updates)


# ------------------------------------------------------------------------------------------- shapes


def _result_faults(graph: Graph, node: Node) -> Iterator[str]:
    """Results of a node that do not agree with its values."""
    counts = {len(part) for part in (node.results, node.result_shapes, node.result_dtypes)}
    if len(counts) > 1:
        yield f"{_name(node)} has unlike numbers of results, shapes and dtypes: {sorted(counts)}"
        return
    for result, shape, dtype in zip(
        node.results, node.result_shapes, node.result_dtypes, strict=True
    ):
        if result is None:
            continue
        value = graph.values[result]
        if (value.shape, value.dtype) != (shape, dtype):
            yield f"{_name(node)} makes {dtype}{list(shape)}, its value {result} is {_kind(value)}"


def _kind(value: Value) -> str:
    return f"{value.dtype}{list(value.shape)}"


def _signature_faults(graph: Graph, node: Node) -> Iterator[str]:
    """Results of frequent ops whose shape or dtype does not follow from their operands."""
    rule = _SHAPES.get(node.op)
    if rule is None or any(
        type(argument) is not Ref for argument in node.args[: _OPERANDS.get(node.op, 1)]
    ):
        return
    operands = [graph.values[value] for value in node.operands]
    due = rule([value.shape for value in operands], node.args)
    if due != node.result_shapes[0]:
        words = ", ".join(map(_kind, operands))
        instead = "the op does not take them" if due is None else f"not {list(due)}"
        yield f"{_name(node)} of {words} makes {list(node.result_shapes[0])}: {instead}"
    elif node.op in _KEEPS_DTYPE and {value.dtype for value in operands} != {node.result_dtypes[0]}:
        yield f"{_name(node)} of {', '.join(map(_kind, operands))} makes {node.result_dtypes[0]}"


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


# ----------------------------------------------------------------------- what comes in and goes out


def _dead_faults(graph: Graph) -> Iterator[str]:
    """Nodes on which no output of the step depends."""
    wanted = {value for _, value in _outputs(graph)}
    for node in reversed(graph.nodes):
        if wanted.isdisjoint(result for result in node.results if result is not None):
            yield f"{_name(node)} makes {list(node.results)}, which nothing needs"
        else:
            wanted.update(node.operands)


def _given_faults(graph: Graph) -> Iterator[str]:
    """Given values that are not declared exactly once, by their kind and name."""
    declared = {
        "parameter": [parameter.value for parameter in graph.parameters],
        "buffer": [*graph.buffers],
        "input": [*graph.inputs],
    }
    for kind, values in declared.items():
        due = [value.id for value in graph.values if value.kind == kind]
        if sorted(values) != due:
            yield f"the {kind}s are declared as values {values}, values of that kind are {due}"
    names = Counter(parameter.name for parameter in graph.parameters)
    for name, count in names.items():
        if count > 1:
            yield f"{count} parameters are called {name!r}"
    for parameter in graph.parameters:
        if graph.values[parameter.value].name != parameter.name:
            yield f"parameter {parameter.name!r} is value {parameter.value}, called {graph.values[parameter.value].name!r}"


def _output_faults(graph: Graph) -> Iterator[str]:
    """Outputs of the step that do not have the shape and dtype of their target."""
    for name, value in (
        ("the loss", graph.loss),
        *((f"reported {name!r}", value) for name, value in graph.reported),
    ):
        if graph.values[value].numel != 1:
            yield f"{name} is value {value}, {_kind(graph.values[value])}: one number is due"
    pairs = [(f"the gradient of {p.name!r}", p.value, p.gradient) for p in graph.parameters]
    for name, held, new in (
        *pairs,
        *((f"the new value of buffer {held}", held, new) for held, new in graph.updates),
    ):
        if _kind(graph.values[held]) != _kind(graph.values[new]):
            yield f"{name} is value {new}, {_kind(graph.values[new])}, for {_kind(graph.values[held])}"
    for held, _ in graph.updates:
        if graph.values[held].kind != "buffer":
            yield f"the step changes value {held}, a {graph.values[held].kind}: only buffers are"


def dims_faults(graph: Graph, shapes: Sequence[SubShape]) -> Iterator[str]:
    """Values whose sub-dims, `shapes`, do not make up their shape."""
    for value, dims in zip(graph.values, shapes, strict=True):
        if tuple(math.prod(dim) for dim in dims) != value.shape:
            yield f"value {value.id}, {_kind(value)}, has sub-dims {dims}"


def lint_faults(recorded: torch.fx.Graph) -> Iterator[str]:
    """The fault that torch itself finds in a recorded graph, before it is read."""
    try:
        recorded.lint()
    except (RuntimeError, ValueError) as error:
        yield str(error).splitlines()[0]


# ------------------------------------------------------------------------------------------- called


def called_faults(graph: Graph) -> Iterator[str]:
    """The first call that fails on fake tensors, or whose results differ from its node's: this
    checks all shapes and dtypes. For a graph that has no other faults."""
    failure = first_failure(_one_rank(graph))
    if failure is not None:
        yield _called(failure)


def _called(failure: Failure) -> str:
    return f"node {failure.instruction.id} ({failure.instruction.op}) of {failure.operands}: {failure.why}"


def _one_rank(graph: Graph) -> Program:
    """The graph as the program of a single rank, used only to call its ops."""
    given = (value for value in graph.values if value.kind in _GIVEN)
    return Program(
        mesh=Mesh((), ()),
        instructions=tuple(_compute(node) for node in graph.nodes),
        parameters=(),
        loss=graph.loss,
        inputs=tuple(
            InputState(
                name=v.name,
                value=v.id,
                subshape=tuple((size,) for size in v.shape),
                layout=(),
                dtype=v.dtype,
                kind=v.kind,
            )
            for v in given
        ),
        value_bytes={},
        initial_bytes={},
    )


def _compute(node: Node) -> Compute:
    """The node's call. Our own ops are called as they were traced, by the custom ops, which accept
    fake tensors."""
    op = (
        node.op
        if is_overload(node.op) or not is_overload(f"{node.op}.default")
        else f"{node.op}.default"
    )
    args, kwargs = map_refs((node.args, node.kwargs), ProgramRef)
    return Compute(
        id=str(node.index),
        op=op,
        args=torch_constants(args),
        kwargs=torch_constants(kwargs),
        results=node.results,
        shapes=node.result_shapes,
        dtypes=node.result_dtypes,
        kind="",
        phase=node.phase,
        path=node.path,
    )
