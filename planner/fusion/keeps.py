"""Whether a fused op can still be split in the ways that matter.

It may lose the last dim, which a norm needs whole, and no other. And where products are added while
they are partial sums, so that one message reduces them all, it must take them as partial sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.fusion.nodes import Members, Nodes
from planner.graph.graph import Node
from planner.rules import Signature
from planner.rules.signature import Letters

__all__ = ["keeps_its_choices"]

_SUMS = ("aten.add.Tensor", "aten.sub.Tensor")


def keeps_its_choices(
    nodes: Nodes, members: Sequence[Node], operands: Sequence[int], signature: Signature
) -> bool:
    """Whether members may become one op with these operands and this signature."""
    fixed = {
        atom
        for atom, letter in _atoms(nodes, operands, signature.operands)
        if letter in signature.fixed
    }
    if any(_loses(nodes, node, fixed) for node in members):
        return False
    groups = [frozenset(operands[i] for i in group) for group in signature.linear]
    return all(
        any(sums <= group for group in groups)
        for sums in _sums(nodes, members, frozenset(operands))
    )


def _atoms(
    nodes: Nodes, operands: Sequence[int], letters: Sequence[Letters]
) -> Iterator[tuple[int, int]]:
    """(atom of the graph, letter of the fused op), wherever an operand has both in one dim."""
    for value, dims in zip(operands, letters, strict=True):
        for found, own in zip(nodes.dims.atoms_by_dim(value), dims, strict=True):
            yield from ((atom, letter) for atom in found for letter in own)


def _loses(nodes: Nodes, node: Node, fixed: set[int]) -> bool:
    """Whether a dim of the node's first result other than the last, which the node alone could
    split, is among the atoms that the fused op cannot."""
    op, value = nodes.dims.ops[node.index], node.results[0]
    if value is None:
        return False
    free = {op.atoms[leaf] for leaf in range(len(op.sizes)) if leaf not in op.fixed}
    return any(atom in fixed & free for dim in nodes.dims.atoms_by_dim(value)[:-1] for atom in dim)


def _sums(nodes: Nodes, members: Sequence[Node], operands: Members) -> Iterator[Members]:
    """The operands that members add while they may all be partial sums of products."""
    inside = frozenset(node.index for node in members)
    for node in members:
        if node.op in _SUMS and len(node.operands) == 2:
            terms = [_products(nodes, value, inside, operands) for value in node.operands]
            if all(terms):
                yield frozenset().union(*terms)


def _products(nodes: Nodes, value: int, inside: Members, operands: Members) -> Members:
    """The operands from which the value comes by casts and sums alone, if they are all results of
    products; else none."""
    writer = nodes.origin(value)
    if writer is None or not _sums_products(nodes, writer):
        return frozenset()
    if writer not in inside:
        return operands & {value}
    parts = [_products(nodes, v, inside, operands) for v in nodes.graph.nodes[writer].operands]
    return frozenset().union(*parts) if all(parts) else frozenset()


def _sums_products(nodes: Nodes, writer: int) -> bool:
    """Whether a node is a product, or casts or adds results of products."""
    node = nodes.graph.nodes[writer]
    if nodes.dims.ops[writer].signature.kind == "gemm":
        return True
    return node.op in ("aten._to_copy.default", *_SUMS) and all(
        (w := nodes.origin(v)) is not None and _sums_products(nodes, w) for v in node.operands
    )
