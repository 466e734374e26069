"""The checker of a `Graph`: values are written before they are read and by one node, shapes and
dtypes are those of the ops' results, and every node is read.

Graph -> faults, one line each, which names the node or value. Frequent ops are checked by their
signatures (`check_shapes.py`); calls of all ops are another check (`check_calls.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch.fx

from planner.graph.graph import Graph, Node
from planner.graph.layout import SubShape
from planner.graph.sections import OF_UPDATE
from planner.program.check_shapes import kind_of, name_of, signature_faults

__all__ = ["GIVEN", "dims_faults", "graph_faults", "lint_faults"]

#: The kinds of values that no node writes.
GIVEN = ("parameter", "buffer", "input", "key", "scale", "received")
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
            yield from unlike or signature_faults(graph, node)
        yield from _dead_faults(graph)
        yield from _given_faults(graph)
        yield from _output_faults(graph)


def _number_faults(graph: Graph) -> Iterator[str]:
    for place, node in enumerate(graph.nodes):
        if node.index != place:
            yield f"node {place} ({node.op}) has index {node.index}"
        phases = (*_PHASES, "update") if node.op in OF_UPDATE else _PHASES
        if node.phase not in phases:
            yield f"node {place} ({node.op}) is of phase {node.phase!r}: {' or '.join(phases)}"
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
        if value.kind in GIVEN:
            if found or value.writer is not None:
                yield f"value {place}, a {value.kind}, is written by node {found[0] if found else value.writer}"
        elif value.kind != "activation":
            yield f"value {place} is a {value.kind!r}: activation or {', '.join(GIVEN)}"
        elif found != [value.writer]:
            yield f"value {place} names node {value.writer} as its writer, written by {found or 'none'}"


def _read_faults(graph: Graph) -> Iterator[str]:
    """Operands and outputs of the step that do not exist or are not written before."""
    for place, node in enumerate(graph.nodes):
        for result in node.results:
            if result is not None and not 0 <= result < len(graph.values):
                yield f"{name_of(node)} writes value {result}, there are {len(graph.values)}"
        for value in node.operands:
            if not 0 <= value < len(graph.values):
                yield f"{name_of(node)} reads value {value}, there are {len(graph.values)}"
                continue
            writer = graph.values[value].writer
            if writer is not None and writer >= place:
                yield f"{name_of(node)} reads value {value}, which node {writer} writes later"
    for name, value in _outputs(graph):
        if not 0 <= value < len(graph.values):
            yield f"{name} is value {value}, there are {len(graph.values)}"


def _outputs(graph: Graph) -> Iterator[tuple[str, int]]:
    """The outputs of the step, by name."""
    yield from _told(graph)
    yield from (
        (f"the gradient of {parameter.name!r}", parameter.gradient)
        for parameter in graph.parameters
    )
    yield from ((f"the new value of buffer {buffer}", new) for buffer, new in graph.updates)
    yield from ((f"sent {number}", value) for number, value in graph.sent)


def _told(graph: Graph) -> Iterator[tuple[str, int]]:
    """The loss and the other scalars that the step reports, in words."""
    if graph.loss is not None:
        yield "the loss", graph.loss
    yield from ((f"reported {name!r}", value) for name, value in graph.reported)


# ------------------------------------------------------------------------------------------- shapes


def _result_faults(graph: Graph, node: Node) -> Iterator[str]:
    """Results of a node that do not agree with its values."""
    counts = {len(part) for part in (node.results, node.result_shapes, node.result_dtypes)}
    if len(counts) > 1:
        yield f"{name_of(node)} has unlike numbers of results, shapes and dtypes: {sorted(counts)}"
        return
    for result, shape, dtype in zip(
        node.results, node.result_shapes, node.result_dtypes, strict=True
    ):
        if result is None:
            continue
        value = graph.values[result]
        if (value.shape, value.dtype) != (shape, dtype):
            yield f"{name_of(node)} makes {dtype}{list(shape)}, its value {result} is {kind_of(value)}"


# ----------------------------------------------------------------------- what comes in and goes out


def _dead_faults(graph: Graph) -> Iterator[str]:
    """Nodes on which no output of the step depends."""
    wanted = {value for _, value in _outputs(graph)}
    for node in reversed(graph.nodes):
        if wanted.isdisjoint(result for result in node.results if result is not None):
            yield f"{name_of(node)} makes {list(node.results)}, which nothing needs"
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
            yield (
                f"parameter {parameter.name!r} is value {parameter.value}, called "
                f"{graph.values[parameter.value].name!r}"
            )


def _output_faults(graph: Graph) -> Iterator[str]:
    """Outputs of the step that do not have the shape and dtype of their target."""
    for name, value in _told(graph):
        if graph.values[value].numel != 1:
            yield f"{name} is value {value}, {kind_of(graph.values[value])}: one number is due"
    for parameter in graph.parameters:
        held, gradient = graph.values[parameter.value], graph.values[parameter.gradient]
        # Its format may be another: that in which gradients are summed.
        if held.shape != gradient.shape or "float" not in gradient.dtype:
            yield (
                f"the gradient of {parameter.name!r} is value {gradient.id}, {kind_of(gradient)}, "
                f"for {kind_of(held)}"
            )
    for buffer, new in graph.updates:
        if kind_of(graph.values[buffer]) != kind_of(graph.values[new]):
            yield (
                f"the new value of buffer {buffer} is value {new}, {kind_of(graph.values[new])}, for "
                f"{kind_of(graph.values[buffer])}"
            )
    for buffer, _ in graph.updates:
        kind = graph.values[buffer].kind
        if kind != "buffer":
            yield f"the step changes value {buffer}, a {kind}: only buffers are"


def dims_faults(graph: Graph, shapes: Sequence[SubShape]) -> Iterator[str]:
    """Values whose sub-dims, `shapes`, do not make up their shape."""
    for value, dims in zip(graph.values, shapes, strict=True):
        if tuple(math.prod(dim) for dim in dims) != value.shape:
            yield f"value {value.id}, {kind_of(value)}, has sub-dims {dims}"


def lint_faults(recorded: torch.fx.Graph) -> Iterator[str]:
    """The fault that torch itself finds in a recorded graph, before it is read."""
    try:
        recorded.lint()
    except (RuntimeError, ValueError) as error:
        yield str(error).splitlines()[0]
