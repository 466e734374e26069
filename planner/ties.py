"""Repeated layers: nodes that do the same in every layer share one choice.

Two nodes are tied where they are the same op at the same place of two modules whose paths differ only in a number (`h.3.attn`,
`h.7.attn`) and whose whole sequences of ops are the same. The tied problem does not grow with depth; every edge of the whole
graph is still in it, counted as often as it occurs, so its objective is that of the whole graph.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from planner.graph import Graph, Node, Serial, map_refs
from planner.subdims import SubDims

__all__ = ["Ties", "layer_of", "pattern_of", "tie"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ties:
    """`node_class[n]` and `parameter_class[p]` are class numbers, each counted from 0 in order of first use."""

    node_class: tuple[int, ...]
    parameter_class: tuple[int, ...]
    nodes_of: tuple[tuple[int, ...], ...]
    parameters_of: tuple[tuple[int, ...], ...]


def pattern_of(path: str) -> str:
    """`h.3.attn.qkv` -> `h.*.attn.qkv`."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def layer_of(path: str) -> str:
    """The layer that a path is in: `h.3.attn.qkv` -> `h.3`; the path itself where it has no number."""
    parts = path.split(".")
    last = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return path if last is None else ".".join(parts[: last + 1])


def tie(graph: Graph, dims: SubDims) -> Ties:
    """The classes of nodes and parameters."""
    sequences: dict[tuple[str, str], list[Node]] = defaultdict(list)
    for node in graph.nodes:
        sequences[node.path, node.phase].append(node)
    keys: dict[int, Any] = {}
    for (path, phase), nodes in sequences.items():
        words = [_word(graph, dims, node) for node in nodes]
        if "*" not in pattern_of(path).split("."):
            words = [(path, word) for word in words]
        whole = hash(tuple(words))
        for place, node in enumerate(nodes):
            keys[node.index] = (pattern_of(path), phase, place, whole, words[place])
    node_class, nodes_of = _number([keys[n.index] for n in graph.nodes])
    parameter_class, parameters_of = _number(
        [(pattern_of(p.name), dims.shapes[p.value], graph.values[p.value].dtype) for p in graph.parameters]
    )
    return Ties(
        node_class=node_class, nodes_of=nodes_of, parameter_class=parameter_class, parameters_of=parameters_of
    )  # fmt: skip


def _word(graph: Graph, dims: SubDims, node: Node) -> Any:
    """All that matters of a node but which values it reads."""
    op = dims.ops[node.index]
    operands = tuple((dims.shapes[v], graph.values[v].dtype, graph.values[v].kind) for v in node.operands)
    arguments = tuple("number" if isinstance(a, Serial) else map_refs(a, lambda _: "tensor") for a in node.args)
    return (
        node.op,
        arguments,
        map_refs(node.kwargs, lambda _: "tensor"),
        operands,
        op.sizes,
        tuple(r is None for r in node.results),
    )


def _number(keys: list[Any]) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    numbers: dict[Any, int] = {}
    classes = tuple(numbers.setdefault(key, len(numbers)) for key in keys)
    members: list[list[int]] = [[] for _ in numbers]
    for index, number in enumerate(classes):
        members[number].append(index)
    return classes, tuple(map(tuple, members))
