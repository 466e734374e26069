"""Repeated layers: nodes that do the same thing in every layer share one choice.

Two nodes are tied if they are the same op at the same place of two modules whose paths differ only
in a number (`h.3.attn`, `h.7.attn`) and whose whole sequences of ops are the same. An op that one
module runs several times, such as a functional ReLU or a residual sum between its blocks, has no
number of its own. It is tied by place: to ops of that module that read from tied ops, and are read
by tied ops, in the same way. Ops that run in every microbatch are not tied to those that run before
or after all of them. The tied problem does not grow with depth. It still has every edge of
the whole graph, counted as often as it occurs, so its objective is that of the whole graph.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planner.dims.roots import Root
from planner.dims.subdims import SubDims
from planner.graph.graph import Graph, Node, Serial, map_refs
from planner.graph.sections import sections_of

__all__ = ["Ties", "block_of", "layer_of", "pattern_of", "tie"]

#: How a node reads or is read, and the node at the other end; None if there is no node there.
_Neighbour = tuple[Hashable, int | None]

#: Nodes tied by place have tied neighbours up to this distance. So the ends of a chain of blocks,
#: and a block that is treated differently, get classes of their own, and the middle of the chain
#: is one class at any depth.
_RADIUS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ties:
    """`node_class[n]` and `parameter_class[p]` are class numbers, each counted from 0 in the order
    of first use."""

    node_class: tuple[int, ...]
    parameter_class: tuple[int, ...]
    nodes_of: tuple[tuple[int, ...], ...]
    parameters_of: tuple[tuple[int, ...], ...]


def pattern_of(path: str) -> str:
    """`h.3.attn.qkv` -> `h.*.attn.qkv`."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def layer_of(path: str) -> str:
    """The layer that a path is in: `h.3.attn.qkv` -> `h.3`; the path itself if it has no number."""
    parts = path.split(".")
    last = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return path if last is None else ".".join(parts[: last + 1])


def block_of(path: str) -> str:
    """The layer that a path is in, empty if no layer owns it: `h.3.attn.qkv` -> `h.3`, `ln_f` ->
    ``."""
    layer = layer_of(path)
    return layer if layer.rpartition(".")[2].isdigit() else ""


def tie(graph: Graph, dims: SubDims, roots: tuple[Root, ...]) -> Ties:
    """The classes of nodes and parameters; `roots[v]` is the tensor that value v is a view of."""
    parameter_class, parameters_of = _number(
        [
            (pattern_of(p.name), dims.shapes[p.value], graph.values[p.value].dtype)
            for p in graph.parameters
        ]
    )
    keys, repeated = _by_number(graph, dims)
    if repeated:
        class_of = dict(zip((p.value for p in graph.parameters), parameter_class, strict=True))
        _by_place(keys, repeated, _neighbours(graph, roots, class_of, repeated))
    node_class, nodes_of = _number(keys)
    return Ties(
        node_class=node_class,
        nodes_of=nodes_of,
        parameter_class=parameter_class,
        parameters_of=parameters_of,
    )


def _by_number(graph: Graph, dims: SubDims) -> tuple[list[Hashable], dict[int, Hashable]]:
    """A key for each node, the same for nodes at the same place of like modules; and, for nodes
    that their module runs in several places, a key that all those places share."""
    sequences: dict[tuple[str, str, str], list[Node]] = defaultdict(list)
    for node, section in zip(graph.nodes, sections_of(graph), strict=True):
        sequences[node.path, node.phase, section].append(node)
    keys: list[Hashable] = [None] * len(graph.nodes)
    repeated: dict[int, Hashable] = {}
    for (path, phase, section), nodes in sequences.items():
        words = [_word(graph, dims, node) for node in nodes]
        if "*" not in pattern_of(path).split("."):
            words = [(path, word) for word in words]
        times, whole = Counter(words), hash(tuple(words))
        for place, (node, word) in enumerate(zip(nodes, words, strict=True)):
            keys[node.index] = (pattern_of(path), phase, section, place, whole, word)
            if times[word] > 1:
                repeated[node.index] = (pattern_of(path), phase, section, whole, word)
    return keys, repeated


def _by_place(
    keys: list[Hashable], repeated: Mapping[int, Hashable], near: Mapping[int, Sequence[_Neighbour]]
) -> None:
    """Gives repeated nodes a key by their neighbours instead of their place (colour refinement): in
    each round, a repeated node's colour is combined with those of its neighbours. The others keep
    theirs: nodes tied by number stay tied, whatever is near the ends of their chain."""
    colours = _number([repeated.get(index, key) for index, key in enumerate(keys)])[0]
    for _ in range(_RADIUS):
        seen = {
            n: tuple((how, None if other is None else colours[other]) for how, other in near[n])
            for n in repeated
        }
        colours = _number([(colour, seen.get(index)) for index, colour in enumerate(colours)])[0]
    together: dict[Hashable, set[int]] = defaultdict(set)
    for index in repeated:
        together[keys[index]].add(colours[index])
    for index in repeated:
        keys[index] = ("by place", frozenset(together[keys[index]]))


def _neighbours(
    graph: Graph, roots: tuple[Root, ...], parameter_class: Mapping[int, int], of: Container[int]
) -> dict[int, list[_Neighbour]]:
    """The neighbours of the nodes in `of`, which write what they read or read what they write, in
    order: how, and the node at the other end if there is one."""
    near: dict[int, list[_Neighbour]] = defaultdict(list)
    for node in graph.nodes:
        for position, value in enumerate(node.operands):
            root = roots[value]
            writer = graph.values[root.value].writer
            if node.index in of:
                near[node.index].append(
                    (
                        (
                            "reads",
                            position,
                            root.places,
                            _source(graph, root.value, parameter_class),
                        ),
                        writer,
                    )
                )
            if writer is not None and writer in of:
                result = graph.nodes[writer].results.index(root.value)
                near[writer].append(
                    (("read", result, position, root.places, node.phase), node.index)
                )
    for value, how in _ends(graph, parameter_class):
        writer = graph.values[roots[value].value].writer
        if writer is not None and writer in of:
            near[writer].append(((*how, roots[value].places), None))
    return near


def _source(graph: Graph, value: int, parameter_class: Mapping[int, int]) -> Hashable:
    """Which result of its writer a root value is, or where it comes from if it has no writer."""
    writer = graph.values[value].writer
    if writer is not None:
        return graph.nodes[writer].results.index(value)
    return parameter_class.get(value, pattern_of(graph.values[value].name))


def _ends(
    graph: Graph, parameter_class: Mapping[int, int]
) -> Iterator[tuple[int, tuple[Hashable, ...]]]:
    """The values that are read at the end of the step, each with its role there."""
    if graph.loss is not None:
        yield graph.loss, ("loss",)
    yield from ((value, ("sent", number)) for number, value in graph.sent)
    yield from ((p.gradient, ("gradient", parameter_class[p.value])) for p in graph.parameters)
    yield from (
        (value, ("update", pattern_of(graph.values[buffer].name)))
        for buffer, value in graph.updates
    )
    yield from ((value, ("reported", name)) for name, value in graph.reported)


def _word(graph: Graph, dims: SubDims, node: Node) -> Any:
    """All that matters about a node, except which values it reads."""
    op = dims.ops[node.index]
    operands = tuple(
        (dims.shapes[v], graph.values[v].dtype, graph.values[v].kind) for v in node.operands
    )
    arguments = tuple(
        "number" if isinstance(a, Serial) else map_refs(a, lambda _: "tensor") for a in node.args
    )
    return (
        node.op,
        arguments,
        map_refs(node.kwargs, lambda _: "tensor"),
        operands,
        op.sizes,
        op.letter,
        op.fixed,
        tuple(r is None for r in node.results),
    )


def _number(keys: list[Any]) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    numbers: dict[Any, int] = {}
    classes = tuple(numbers.setdefault(key, len(numbers)) for key in keys)
    members: list[list[int]] = [[] for _ in numbers]
    for index, number in enumerate(classes):
        members[number].append(index)
    return classes, tuple(map(tuple, members))
