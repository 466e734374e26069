"""Values of forward that a fused op of backward computes again, instead of reading them.

Where only fused ops of backward read a forward value, and each of them reads all that it is made of
anyway, making it again reads no more memory and keeps less of it: the gate of SwiGLU, the terms of
GELU's formula.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.fusion.bodies import body_for
from planner.fusion.fusible import REPEATABLE
from planner.fusion.nodes import STEP, Members, Nodes

__all__ = ["computed_again"]

#: A value made by more ops than these is read.
_MOST_OPS = 8


def computed_again(nodes: Nodes, group_of: Mapping[int, Members]) -> dict[Members, Members]:
    """For each group of backward, the nodes of forward that it runs again. `group_of` has the group
    of every fusible node, which may be alone in it."""
    again: dict[Members, Members] = {}
    operands: dict[Members, set[int]] = {}
    for index in reversed(nodes.order):
        node = nodes.graph.nodes[index]
        value = node.results[0]
        if value is None or not _may_be_repeated(nodes, index):
            continue
        readers = _backward_readers(nodes, group_of, index, value)
        for group in readers:
            if group not in operands:
                operands[group] = _read_by(nodes, group)
        found = {
            group: _ops_from(nodes, index, operands[group] - {value}, again.get(group, frozenset()))
            for group in readers
        }
        if found and all(found.values()):
            for group, ops in found.items():
                again[group] = again.get(group, frozenset()) | ops
                operands[group].discard(value)
    return again


def _may_be_repeated(nodes: Nodes, index: int) -> bool:
    node = nodes.graph.nodes[index]
    return index in nodes.fusible and node.phase == "forward" and node.op in REPEATABLE


def _backward_readers(
    nodes: Nodes, group_of: Mapping[int, Members], index: int, value: int
) -> list[Members]:
    """The groups of backward that read a value; none if anything else reads it but the node's own
    group."""
    none: Members = frozenset()
    own = group_of.get(index, none)
    found: list[Members] = []
    for reader in nodes.readers.get(value, none) - own:
        group = group_of.get(reader, none)
        if reader == STEP or not group or nodes.graph.nodes[reader].phase != "backward":
            return []
        if nodes.homes[reader][::2] != nodes.homes[index][::2]:
            return []  # of another layer or section
        found.append(group)
    return list(dict.fromkeys(found))


def _read_by(nodes: Nodes, group: Members) -> set[int]:
    inside = nodes.sorted(group)
    _, operands, _ = body_for(nodes.graph, nodes.dims, inside, frozenset())
    return set(operands)


def _ops_from(nodes: Nodes, index: int, given: set[int], made: Members) -> Members:
    """The nodes that make a node's results from the values `given` and the results of the nodes
    `made`; empty if they cannot be made so, or take too many."""
    out: set[int] = set()
    waiting = [index]
    while waiting:
        at = waiting.pop()
        if at in out or at in made:
            continue
        if not _may_be_repeated(nodes, at) or len(out) == _MOST_OPS:
            return frozenset()
        out.add(at)
        for value in nodes.graph.nodes[at].operands:
            writer = nodes.origin(value)
            if value in given:
                continue
            if writer is None:
                return frozenset()
            waiting.append(writer)
    return frozenset(out)
