"""The rule of a fused op, composed from the rules of its members.

Body -> `Signature`. The members' letters are unified as those of a graph's nodes are, so a letter of
the fused op is an atom of its body. What splitting a letter, or a partial sum in a group of
operands, does to every member follows from the members' rules; a letter that some member could only
split with a message cannot be split. The cost is one read of every operand and one write of every
result. On a shard, each member's call is that of its own rule.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

from cost_models.memory import dtype_bytes
from planner.dims.subdims import OpDims, SubDims, call_of, infer
from planner.graph.fused import FUSED, Body, Member, as_graph, body_of
from planner.graph.graph import Graph, Group, Node
from planner.graph.layout import PARTIAL_SUM, REPLICATE
from planner.rules import Call, Local, OpCost, Signature, local_call
from planner.rules.signature import LocalCall, register

__all__ = ["composed"]

#: The placement of a value on the one axis that is looked at: split at the atom in question.
_SPLIT = 0
#: A group of operands is looked for through sums of products; more groups than these are not.
_MOST_GROUPS = 16


@lru_cache(maxsize=4096)
def composed(body: Body) -> Signature:
    """The signature of a fused op with this body."""
    graph = as_graph(body)
    dims = infer(graph)
    sizes = _atom_sizes(dims)
    placed = {atom: _split(graph, dims, atom) for atom in range(len(sizes))}
    fixed = {atom for atom, found in placed.items() if found is None}
    operands = range(len(body.operands))
    return Signature(
        kind="fused",
        sizes=sizes,
        operands=tuple(dims.atoms_by_dim(slot) for slot in operands),
        results=tuple(dims.atoms_by_dim(slot) for slot in body.results),
        fixed=frozenset(fixed),
        reduced=tuple(
            frozenset(
                atom
                for atom, found in placed.items()
                if found is not None and found[slot] == PARTIAL_SUM
            )
            for slot in body.results
        ),
        linear=tuple(_linear(graph, dims, body)),
        cost=lambda letters: _cost(graph, dims, body, letters),
    )


def _atom_sizes(dims: SubDims) -> tuple[int, ...]:
    found = {atom: size for op in dims.ops for atom, size in zip(op.atoms, op.sizes, strict=True)}
    for value, atoms in enumerate(dims.atoms):
        found.update(zip(atoms, dims.flat(value), strict=True))
    assert sorted(found) == list(range(len(found)))
    return tuple(found[atom] for atom in range(len(found)))


# ---------------------------------------------------------------- what one axis does to every value


def _split(graph: Graph, dims: SubDims, atom: int) -> dict[int, int] | None:
    """The placement of every value if all members that have the atom are split there; None if a
    member cannot be, or would need a message."""
    placed = {v: _SPLIT if atom in dims.atoms[v] else REPLICATE for v in graph.inputs}
    for node in graph.nodes:
        op = dims.ops[node.index]
        made = (
            _split_member(node, op, op.atoms.index(atom), placed)
            if atom in op.atoms
            else _whole_member(node, op, placed)
        )
        if made is None:
            return None
        placed |= made
    return placed


def _split_member(
    node: Node, op: OpDims, leaf: int, placed: dict[int, int]
) -> dict[int, int] | None:
    """The placements of the results of a member split at a leaf."""
    inner = op.letter[leaf] in op.signature.inner
    if inner or leaf in op.fixed or op.atoms.count(op.atoms[leaf]) > 1:
        return None
    for value, leaves in zip(node.operands, op.operands, strict=True):
        if placed[value] != (_SPLIT if leaf in leaves else REPLICATE):
            return None
    return {
        value: _SPLIT
        if leaf in leaves
        else PARTIAL_SUM
        if op.letter[leaf] in op.signature.reduced_in(number)
        else REPLICATE
        for number, (value, leaves) in enumerate(zip(node.results, op.results, strict=True))
        if value is not None
    }


def _whole_member(node: Node, op: OpDims, placed: dict[int, int]) -> dict[int, int] | None:
    """The placements of the results of a member that is split nowhere: its operands are whole, or
    partial sums that it is linear in."""
    if any(placed[value] == _SPLIT for value in node.operands):
        return None
    partial = frozenset(
        position for position, value in enumerate(node.operands) if placed[value] == PARTIAL_SUM
    )
    if partial and partial not in op.signature.linear:
        return None
    made = PARTIAL_SUM if partial else REPLICATE
    return {value: made for value in node.results if value is not None}


def _linear(graph: Graph, dims: SubDims, body: Body) -> list[frozenset[int]]:
    """The groups of operands in which all results are linear together."""
    groups: dict[int, set[frozenset[int]]] = {v: {frozenset({v})} for v in graph.inputs}
    for node in graph.nodes:
        found: set[frozenset[int]] = set()
        for group in dims.ops[node.index].signature.linear:
            parts = [groups[node.operands[position]] for position in sorted(group)]
            found.update(frozenset().union(*one) for one in itertools.product(*parts))
        kept = set(sorted(found, key=sorted)[:_MOST_GROUPS])
        groups |= {value: kept for value in node.results if value is not None}
    wanted = groups[body.results[0]]
    return [g for g in sorted(wanted, key=sorted) if g and _is_linear(graph, dims, body, g)]


def _is_linear(graph: Graph, dims: SubDims, body: Body, group: frozenset[int]) -> bool:
    """Whether every result is a partial sum if the operands of the group are and the others are
    whole."""
    placed = {v: PARTIAL_SUM if v in group else REPLICATE for v in graph.inputs}
    for node in graph.nodes:
        made = _whole_member(node, dims.ops[node.index], placed)
        if made is None:
            return False
        placed |= made
    return all(placed[slot] == PARTIAL_SUM for slot in body.results)


# ---------------------------------------------------------------------------------- cost and shards


def _cost(graph: Graph, dims: SubDims, body: Body, letters: tuple[int, ...]) -> OpCost:
    """One read of every operand and one write of every result, in elements of the dtype in which
    the op is costed; the members' flops."""
    kinds = body.kinds()
    dtypes = [kinds[slot][1] for slot in body.results]
    unit = dtype_bytes(next((d for d in dtypes if "float" in d), dtypes[0]))
    outside = (*range(len(body.operands)), *body.results)
    nbytes = sum(
        math.prod(letters[atom] for atom in dims.atoms[slot]) * dtype_bytes(kinds[slot][1])
        for slot in outside
    )
    flops = 0.0
    for op in dims.ops:
        local = op.letter_sizes(tuple(letters[atom] for atom in op.atoms))
        cost = op.signature.cost(local) if op.signature.cost else None
        flops += cost.flops if cost is not None else float(math.prod(local))
    return OpCost(flops=flops, elements=nbytes / unit)


def _local(call: Call, local: Local) -> LocalCall:
    """The call on one shard: its body has the members' own local calls."""
    body = body_of(call.args)
    return call.op, (*call.args[:-1], _local_body(body, local)), call.kwargs


def _local_body(body: Body, local: Local) -> Body:
    graph = as_graph(body)
    dims = infer(graph)
    shapes = {v: _shape(graph, dims, v, local.sizes) for v in range(len(graph.values))}
    return Body(
        operands=tuple((shapes[slot], dtype) for slot, (_, dtype) in enumerate(body.operands)),
        members=tuple(
            _local_member(graph, dims, node, member, local, shapes)
            for node, member in zip(graph.nodes, body.members, strict=True)
        ),
        results=body.results,
    )


def _shape(graph: Graph, dims: SubDims, value: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The local shape of a value; a dim without atoms keeps its size (of 1, or 0)."""
    whole = graph.values[value].shape
    return tuple(
        math.prod(sizes[atom] for atom in dim) if dim else size
        for dim, size in zip(dims.atoms_by_dim(value), whole, strict=True)
    )


def _local_member(
    graph: Graph,
    dims: SubDims,
    node: Node,
    member: Member,
    local: Local,
    shapes: dict[int, tuple[int, ...]],
) -> Member:
    op = dims.ops[node.index]
    sizes = op.letter_sizes(tuple(local.sizes[atom] for atom in op.atoms))
    made = tuple(
        shape if value is None else shapes[value]
        for value, shape in zip(node.results, node.result_shapes, strict=True)
    )
    split: dict[int, tuple[int, ...]] = {}
    for letter, atom in zip(op.letter, op.atoms, strict=True):
        axes = local.split.get(atom, ())
        if axes:
            split[letter] = (*split.get(letter, ()), *axes)
    own = Local(results=made, split=split, sizes=sizes)
    name, args, kwargs = local_call(op.signature, call_of(graph, node), own)
    # A member that sends messages splits a letter that the fused op may not.
    assert not any(isinstance(value, Group) for _, value in kwargs), (name, kwargs)
    return Member(
        op=name,
        args=args,
        kwargs=kwargs,
        results=member.results,
        shapes=made,
        dtypes=member.dtypes,
    )


@register(FUSED, localize=_local)
def _fused(call: Call) -> Signature:
    return composed(body_of(call.args))
