"""The `Graph`: one whole training step (forward, loss, backward) as ops on values.

Written by `trace`, read by every later stage. Nodes stand in the order of execution; values are
numbered from 0 and each is written once. In-place ops, tuples and aliases are gone: an op has
tensor results, and a value has one writer.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = [
    "Graph",
    "Group",
    "Node",
    "Parameter",
    "Ref",
    "Serial",
    "Value",
    "map_refs",
    "needed",
    "refs_in",
    "renamed",
    "renumbered",
    "result_name",
    "without_unread",
]


@dataclass(frozen=True, slots=True)
class Ref:
    """An argument that is the value `id`."""

    id: int


@dataclass(frozen=True, slots=True)
class Serial:
    """An argument that is a serial number: it tells apart the ops of a step that are otherwise the
    same. No choice depends on it."""

    number: int


@dataclass(frozen=True, slots=True)
class Group:
    """An argument that is the process group of the ranks that differ only on mesh `axes`. Only ops
    on shards have one."""

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A tensor of the step; `writer` is the node that makes it. `kind`: `parameter`, `buffer`,
    `input`, `activation`, `key`: the number from which the step's random masks are drawn, a new one
    in every step; `scale`: the number by which the loss is multiplied before backward; or
    `received`: it comes from another pipeline stage."""

    id: int
    shape: tuple[int, ...]
    dtype: str
    kind: str
    name: str
    writer: int | None = None

    @property
    def is_given(self) -> bool:
        """Whether it comes into the step from outside and is not a parameter: it is there in
        whatever layout it is read."""
        return self.kind in ("input", "buffer", "key", "scale", "received")

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One op. `args` and `kwargs` hold `Ref`, constants and nested tuples of them, as in the op's
    schema: `kwargs` holds its keyword-only arguments, by name. `path` is the module that ran it
    (or whose backward it is); `results[i]` is None if the op's i-th result is never read;
    `operands` are the values read, in the order of `args` and then of `kwargs`, one entry per
    use. `checkpoint`: the model runs it inside of a `torch.utils.checkpoint`, which is to compute
    it again in backward (`recompute`) or has rules of its own (`selective`); else empty."""

    index: int
    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    results: tuple[int | None, ...]
    result_shapes: tuple[tuple[int, ...], ...]
    result_dtypes: tuple[str, ...]
    phase: str
    path: str
    checkpoint: str = ""
    operands: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "operands", tuple(refs_in((self.args, self.kwargs))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A trained tensor: its value, and the value that holds its gradient at the end of the step."""

    name: str
    value: int
    gradient: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The whole step. `inputs` are the batch tensors in order, `buffers` the module's; `loss` is
    a scalar value, and `reported` are the scalars that it is the sum of, by name. `updates` are
    the buffers that the step changes: (buffer, its new value).

    If the step runs in `microbatches`, one after another, this is the graph of one of them
    (`sections.py`). Each reads a piece of every input i: as a row-major tensor the whole input is
    (outer, microbatches x here, inner), with `pieces[i]` = (outer, here), and microbatch j's piece
    is (outer, here from j x here on, inner); None: every microbatch reads all of it. The step's
    key then holds two numbers: the key itself and the microbatch's number. The buffers in
    `carried` are stored after every microbatch, for the next one to read; all others once, at the
    end of the step.

    The graph of one pipeline stage (`planner/stages/`) has the values that other stages send it,
    `received`, and those that it makes for them, `sent`: (number of the crossing, value); `samples`
    are the dims of received values whose outermost part is samples: (value, dim). `copies` are the
    parameters that an earlier stage holds too. Only the stage
    that computes the loss has a `loss`."""

    nodes: tuple[Node, ...]
    values: tuple[Value, ...]
    parameters: tuple[Parameter, ...]
    inputs: tuple[int, ...]
    buffers: tuple[int, ...]
    loss: int | None
    updates: tuple[tuple[int, int], ...] = ()
    reported: tuple[tuple[str, int], ...] = ()
    microbatches: int = 1
    pieces: tuple[tuple[int, int] | None, ...] = ()
    carried: tuple[int, ...] = ()
    sent: tuple[tuple[int, int], ...] = ()
    received: tuple[tuple[int, int], ...] = ()
    samples: tuple[tuple[int, int], ...] = ()
    copies: tuple[int, ...] = ()

    def readers(self) -> dict[int, list[tuple[int, int]]]:
        """For each value, the (node index, operand position) pairs that read it, in order."""
        out: dict[int, list[tuple[int, int]]] = {value.id: [] for value in self.values}
        for node in self.nodes:
            for position, value in enumerate(node.operands):
                out[value].append((node.index, position))
        return out

    @property
    def told(self) -> tuple[tuple[str, int], ...]:
        """The scalars that the step reports, by name: the loss, if it is computed here, and those
        that it is the sum of."""
        return (*(() if self.loss is None else (("loss", self.loss),)), *self.reported)

    @property
    def outputs(self) -> tuple[int, ...]:
        """The values that the step makes for others: the loss, the gradients, the reported scalars
        and the new values of buffers."""
        return (
            *(() if self.loss is None else (self.loss,)),
            *(p.gradient for p in self.parameters),
            *(value for _, value in (*self.reported, *self.updates, *self.sent)),
        )

    @property
    def num_parameters(self) -> int:
        return sum(self.values[p.value].numel for p in self.parameters)

    def digest(self) -> str:
        """A hash of ops, arguments, shapes and parameter names: the same for the same step, on
        whatever machine it was traced."""
        state = hashlib.sha256()
        for value in self.values:
            state.update(
                f"{value.id} {value.shape} {value.dtype} {value.kind} {value.name}\n".encode()
            )
        for node in self.nodes:
            state.update(f"{node.op} {node.args} {node.kwargs} {node.results}\n".encode())
        state.update(f"{self.parameters} {self.inputs} {self.loss}".encode())
        if self.updates or self.reported:
            state.update(f"{self.updates} {self.reported}".encode())
        if self.microbatches > 1:
            state.update(f"{self.microbatches} {self.pieces} {self.carried}".encode())
        if self.sent or self.received:
            state.update(f"{self.sent} {self.received} {self.samples}".encode())
        return state.hexdigest()


def needed(nodes: Sequence[Node], wanted: Iterable[int], stop: Iterable[int] = ()) -> list[Node]:
    """The nodes on which the wanted values depend, in order, without those of `stop` and the nodes
    that only these need."""
    due, stops, kept = {*wanted}, {*stop}, []
    for node in reversed(nodes):
        if not due.isdisjoint(node.results) and stops.isdisjoint(node.results):
            kept.append(node)
            due.update(node.operands)
    return kept[::-1]


def without_unread(graph: Graph) -> Graph:
    """The graph without the nodes on which no output of the step depends. Nodes and values are
    numbered, and results named, as if those nodes had never been there."""
    kept = needed(graph.nodes, graph.outputs)
    return graph if len(kept) == len(graph.nodes) else renumbered(graph, kept, graph.values)


def renumbered(graph: Graph, nodes: Sequence[Node], values: Iterable[Value]) -> Graph:
    """The graph of these nodes, with nodes and values numbered, and results named, in order; values
    that no node writes come first. Nodes and outputs of `graph` name `values` by other numbers."""
    by_id = {value.id: value for value in values}
    given = [value for value in by_id.values() if value.writer is None]
    made = [(r, i) for i, node in enumerate(nodes) for r in node.results if r is not None]
    new = {v: number for number, v in enumerate([*(v.id for v in given), *(r for r, _ in made)])}
    counts: Counter[str] = Counter()
    names = [result_name(node.op, counts) for node in nodes]
    return replace(
        graph,
        nodes=tuple(renamed(node, new, index) for index, node in enumerate(nodes)),
        values=(
            *(replace(value, id=new[value.id]) for value in given),
            *(replace(by_id[r], id=new[r], writer=i, name=names[i]) for r, i in made),
        ),
        loss=None if graph.loss is None else new[graph.loss],
        parameters=tuple(
            replace(p, value=new[p.value], gradient=new[p.gradient]) for p in graph.parameters
        ),
        inputs=tuple(new[v] for v in graph.inputs),
        buffers=tuple(new[v] for v in graph.buffers),
        updates=tuple((new[a], new[b]) for a, b in graph.updates),
        reported=tuple((n, new[v]) for n, v in graph.reported),
        carried=tuple(new[v] for v in graph.carried),
        sent=tuple((n, new[v]) for n, v in graph.sent),
        received=tuple((n, new[v]) for n, v in graph.received),
        samples=tuple((new[v], dim) for v, dim in graph.samples),
        copies=tuple(new[v] for v in graph.copies),
    )


def renamed(node: Node, new: Mapping[int, int], index: int) -> Node:
    """The node as number `index`, with the numbers `new` for the values that it names."""
    args, kwargs = map_refs((node.args, node.kwargs), lambda v: Ref(new[v]))
    results = tuple([None if r is None else new[r] for r in node.results])
    return replace(node, index=index, args=args, kwargs=kwargs, results=results)


def result_name(op: str, counts: Counter[str]) -> str:
    """The name of an op's result: `mm_3` for the fourth product. It depends only on the ops
    before it, which `counts` counts."""
    stem = op.split(".")[1]
    counts[stem] += 1
    return f"{stem}_{counts[stem] - 1}"


def refs_in(args: Any, kind: type[Any] = Ref) -> list[int]:
    """The ids in nested arguments, in order; `kind` is the class that stands for a value there. If
    `args` is the pair (args, kwargs) of a call, these are its operands: nothing else says which
    values an op reads."""
    found: list[int] = []
    _gather(args if isinstance(args, tuple) else (args,), kind, found)
    return found


def _gather(items: tuple[Any, ...], kind: type[Any], found: list[int]) -> None:
    """Adds the ids to the list `found`. Every op of every program comes through here, and nested
    generators are several times as slow."""
    for item in items:
        if type(item) is kind:
            found.append(item.id)
        elif isinstance(item, tuple):
            _gather(item, kind, found)


def map_refs(args: Any, replace: Any, kind: type[Any] = Ref) -> Any:
    """Nested arguments with every reference replaced by `replace(id)`, in the order of
    `refs_in`."""
    if type(args) is kind:
        return replace(args.id)
    if isinstance(args, tuple):
        return tuple([map_refs(item, replace, kind) for item in args])
    return args
