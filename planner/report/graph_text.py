"""The text of a `Graph`, for a person who wants to see what one step does: one op per line.

Graph -> text. Only the first of a stack of like blocks is shown, unless the whole graph is asked
for; then two graphs with the same text are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from planner.dims.ties import pattern_of
from planner.graph.columns import aligned
from planner.graph.fused import Body, body_text
from planner.graph.graph import Graph, Node, Ref, Serial, Value
from planner.report.graph_fold import Repeat, repeats

__all__ = ["graph_text"]

#: If there are more numbers in a row, only the first few are shown, unless the whole graph is.
_MOST, _SHOWN = 12, 4


def graph_text(graph: Graph, *, whole: bool = False) -> str:
    """The graph as lines: the step's inputs and outputs, then its nodes.

    `%3` is a value, `#5` the serial number that tells like random ops apart, `_` a result that
    nothing reads; a tensor is `float32[8x64]`. Of a stack of like blocks only the first is shown;
    likewise of parameters and buffers whose names differ only in numbers. With `whole`, every
    block, name and constant is shown.
    """
    runs = () if whole else repeats(graph)
    rows = [("node", "phase", "module", "call")]
    lines = aligned([*rows, *(_row(node, whole) for node in _shown(graph, runs))])
    return (
        "\n".join([*_head(graph), "", *_given(graph, whole), "", *_with_runs(graph, lines, runs)])
        + "\n"
    )


def _shown(graph: Graph, runs: Sequence[Repeat]) -> list[Node]:
    folded = {index for run in runs for block in range(1, run.count) for index in run.block(block)}
    return [node for node in graph.nodes if node.index not in folded]


def _with_runs(graph: Graph, lines: list[str], runs: Sequence[Repeat]) -> Iterator[str]:
    """The lines of nodes, a line more before and after the first block of each run."""
    yield lines[0]
    places = {node.index: place for place, node in enumerate(_shown(graph, runs), start=1)}
    before = {places[run.start]: run for run in runs}
    after = {places[run.start] + run.length: run for run in runs}
    for place in range(1, len(lines) + 1):
        if place in after:
            yield f"--  to node {after[place].end - 1}: {after[place].count - 1} blocks more like it"
        if place in before:
            yield f"--  {before[place].count} blocks of {before[place].length} nodes, the first of them:"
        if place < len(lines):
            yield lines[place]


# ---------------------------------------------------------------------------------------- the whole


def _head(graph: Graph) -> Iterator[str]:
    counts = {
        phase: sum(node.phase == phase for node in graph.nodes) for phase in ("forward", "backward")
    }
    yield (
        f"step      {', '.join(f'{phase} {count} nodes' for phase, count in counts.items())}, "
        f"{len(graph.values)} values"
    )
    yield f"trained   {len(graph.parameters)} parameters, {graph.num_parameters} elements"
    if graph.loss is not None:
        yield f"loss      {', '.join([f'%{graph.loss}', *(f'{name} %{value}' for name, value in graph.reported)])}"


def _given(graph: Graph, whole: bool) -> list[str]:
    """Lines for the step's given values, their gradients, and the buffers that it changes."""
    more = {p.value: f"gradient %{p.gradient}" for p in graph.parameters} | {
        a: f"becomes %{b}" for a, b in graph.updates
    }
    rows: dict[Any, tuple[Value, int]] = {}
    for value in graph.values:
        if value.writer is None:
            named = value.kind in ("parameter", "buffer") and not whole
            key = (
                (value.kind, pattern_of(value.name), value.shape, value.dtype)
                if named
                else value.id
            )
            first, count = rows.get(key, (value, 0))
            rows[key] = first, count + 1
    cells = [
        (f"%{v.id}", v.kind, _times(v, count), _tensor(v.shape, v.dtype), more.get(v.id, ""))
        for v, count in rows.values()
    ]
    return aligned([("value", "kind", "name", "tensor", ""), *cells])


def _times(value: Value, count: int) -> str:
    return f"{pattern_of(value.name)} (x{count})" if count > 1 else value.name


# -------------------------------------------------------------------------------------------- nodes


def _row(node: Node, whole: bool) -> tuple[str, ...]:
    arguments = [
        *(_argument(a, whole) for a in node.args),
        *(f"{key}={_argument(a, whole)}" for key, a in node.kwargs),
    ]
    results = zip(node.results, node.result_shapes, node.result_dtypes, strict=True)
    made = ", ".join(
        f"{'_' if value is None else f'%{value}'} {_tensor(shape, dtype)}"
        for value, shape, dtype in results
    )
    return (
        str(node.index),
        node.phase,
        node.path or "(top)",
        f"{node.op}({', '.join(arguments)}) -> {made}",
    )


def _argument(value: Any, whole: bool) -> str:
    """An argument as Python writes it, a value as `%3`; of a long row of numbers the first few."""
    if isinstance(value, Ref):
        return f"%{value.id}"
    if isinstance(value, Serial):
        return f"#{value.number}"
    if isinstance(value, Body):
        return body_text(value)
    if isinstance(value, tuple):
        short = (
            not whole
            and len(value) > _MOST
            and not any(isinstance(item, Ref | tuple) for item in value)
        )
        inner = [_argument(item, whole) for item in (value[:_SHOWN] if short else value)]
        inner += [f"... {len(value)} in all"] if short else []
        return f"({', '.join(inner)}{',' * (len(inner) == 1)})"
    return value if isinstance(value, str) and value.startswith("torch.") else repr(value)


def _tensor(shape: tuple[int, ...], dtype: str) -> str:
    return f"{dtype}[{'x'.join(map(str, shape))}]"
