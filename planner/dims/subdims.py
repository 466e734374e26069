"""Sub-dims: every dim of every value as an ordered product of atoms, inferred over the whole graph
by unification.

Graph -> Atoms. Each dim starts as one atom; each op unifies the atoms of its operands and results;
an atom is split where a reshape needs it. So `4 x hidden` becomes (gate, hidden) and a fused QKV
(3, heads, head_dim) everywhere they flow. Invariant: the atoms' sizes multiply to the dim's size,
and two dims that an op identifies have the same atoms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from cost_models.errors import NotTraceable
from planner.graph.graph import Graph, Node, Ref, map_refs
from planner.graph.layout import SubShape
from planner.rules import Call, Signature, signature_of

__all__ = ["OpDims", "SubDims", "call_of", "infer"]


@dataclass(slots=True)
class _Atom:
    """A node of the union-find forest: merged into `same`, split into `parts`, or a leaf."""

    size: int
    same: _Atom | None = None
    parts: tuple[_Atom, ...] | None = None
    number: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class OpDims:
    """One node in terms of its *leaves*: the letters of its signature, each divided into atoms.

    `sizes[i]` is leaf i's size, `letter[i]` the letter it is part of, `atoms[i]` its atom's number.
    `operands[o]` are the leaves of operand o's flat sub-dims in order (a leaf's position there is
    the sub-dim number that a layout names), `results[r]` those of result r. `fixed` are the leaves
    that cannot be split: those of fixed letters, and all but the first of a letter that must stay
    contiguous.
    """

    signature: Signature
    sizes: tuple[int, ...]
    letter: tuple[int, ...]
    atoms: tuple[int, ...]
    operands: tuple[tuple[int, ...], ...]
    results: tuple[tuple[int, ...], ...]
    fixed: frozenset[int] = frozenset()

    def letter_sizes(self, leaf_sizes: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes of the letters, given those of the leaves."""
        out = [1] * len(self.signature.sizes)
        for leaf, size in enumerate(leaf_sizes):
            out[self.letter[leaf]] *= size
        return tuple(out)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubDims:
    """`shapes[v]` are the sub-dim sizes of value v, `atoms[v]` the atoms' numbers, flat;
    `ops[n]` describes node n."""

    shapes: tuple[SubShape, ...]
    atoms: tuple[tuple[int, ...], ...]
    ops: tuple[OpDims, ...]

    def first(self, value: int, dim: int) -> int:
        """The place of a dim's outermost sub-dim among those of a value."""
        return sum(map(len, self.shapes[value][:dim]))

    def flat(self, value: int) -> tuple[int, ...]:
        """The sub-dim sizes of value v, in one row: what a layout's placements count."""
        return tuple(size for dim in self.shapes[value] for size in dim)

    def atoms_by_dim(self, value: int) -> tuple[tuple[int, ...], ...]:
        """The atoms of every dim of value v."""
        atoms = iter(self.atoms[value])
        return tuple(tuple(itertools.islice(atoms, len(dim))) for dim in self.shapes[value])


def call_of(graph: Graph, node: Node) -> Call:
    """The node as the `Call` that rules read."""
    return Call(
        op=node.op,
        args=node.args,
        kwargs=node.kwargs,
        results=node.result_shapes,
        operands=tuple(graph.values[v].shape for v in node.operands),
    )


def infer(graph: Graph) -> SubDims:
    """The sub-dims of every value, and every node's signature in terms of them. The rule of an op
    that has none is discovered."""
    dims = [tuple([_Atom(size=size)] for size in value.shape) for value in graph.values]
    forest: list[tuple[list[_Atom], ...]] = [tuple(d) for d in dims]
    letters: list[list[_Atom]] = []
    signatures: list[Signature] = []
    memo: dict[Hashable, Signature] = {}
    for node in graph.nodes:
        signature = _signature(graph, node, memo)
        atoms = [_Atom(size=size) for size in signature.sizes]
        clean = _unify_node(graph, node, signature, atoms, forest)
        signatures.append(signature if clean else _unsplittable(signature))
        letters.append(atoms)
    held = [(parameter.value, parameter.gradient) for parameter in graph.parameters]
    for value, new in (*held, *graph.updates):  # one layout has to mean the same pieces of both
        for left, right in zip(forest[value], forest[new], strict=True):
            _unify(left, right)
    found = _read(graph, forest, signatures, letters)
    for value, new in graph.updates:
        _check_alike(graph, value, found.shapes[value], found.shapes[new])
    return found


def _check_alike(graph: Graph, value: int, before: SubShape, after: SubShape) -> None:
    """Raises NotTraceable if a buffer's new value has other sub-dims than the buffer, such as
    3 x 2 for 2 x 3."""
    if before != after:
        raise NotTraceable(
            f"buffer {graph.values[value].name!r} is read as {before}, but its new value is made "
            f"as {after}, and these do not nest: use one of the two shapes throughout"
        )


def _unsplittable(signature: Signature) -> Signature:
    return replace(signature, fixed=frozenset(range(len(signature.sizes))), view=False)


def _signature(graph: Graph, node: Node, memo: dict[Hashable, Signature]) -> Signature:
    """The node's signature. Equal calls share one in `memo`, whatever values they read."""
    dtypes = tuple([graph.values[v].dtype for v in node.operands])
    shapes = tuple([graph.values[v].shape for v in node.operands])
    numbers: dict[int, int] = {}
    args = map_refs(
        (node.args, node.kwargs), lambda value: Ref(numbers.setdefault(value, len(numbers)))
    )
    key = node.op, args, node.result_shapes, shapes, dtypes
    if key not in memo:
        memo[key] = signature_of(call_of(graph, node), dtypes)
    return memo[key]


def _unify_node(
    graph: Graph,
    node: Node,
    signature: Signature,
    atoms: list[_Atom],
    forest: list[tuple[list[_Atom], ...]],
) -> bool:
    """Unifies each dim of the node's tensors with its letters; False if two do not nest."""
    clean = True
    tensors = [*zip(node.operands, signature.operands, strict=True)]
    tensors += [
        (v, s) for v, s in zip(node.results, signature.results, strict=True) if v is not None
    ]
    for value, dims in tensors:
        for dim, dim_letters in zip(forest[value], dims, strict=True):
            if dim_letters:
                clean &= _unify(dim, [atoms[letter] for letter in dim_letters])
    return clean


def _leaves(atoms: Iterable[_Atom]) -> list[_Atom]:
    """The leaves of some atoms, in order, without those of size 1."""
    out: list[_Atom] = []
    for atom in atoms:
        root = _root(atom)
        if root.parts is not None:
            out.extend(_leaves(root.parts))
        elif root.size != 1:
            out.append(root)
    return out


def _root(atom: _Atom) -> _Atom:
    while atom.same is not None:
        if atom.same.same is not None:
            atom.same = atom.same.same
        atom = atom.same
    return atom


def _unify(left: list[_Atom], right: list[_Atom]) -> bool:
    """Makes two products of atoms equal, splitting atoms if needed; False (and no change of
    meaning) if they do not nest, such as 2 x 3 and 3 x 2."""
    if len(left) == len(right) == 1 and _match_whole(left[0], right[0]):
        return True
    a, b = _leaves(left), _leaves(right)
    left[:], right[:] = a, b
    if _match(a, b):
        return True
    if math.prod(x.size for x in a) != math.prod(x.size for x in b) or any(x.size == 0 for x in a):
        return [x.size for x in a] == [x.size for x in b]
    i = j = 0
    while i < len(a) and j < len(b):
        x, y = a[i], b[j]
        if x is y:
            i, j = i + 1, j + 1
        elif x.size == y.size:
            y.same = x
            i, j = i + 1, j + 1
            a, b = a[:i] + _leaves(a[i:]), b[:j] + _leaves(b[j:])
        elif x.size > y.size and x.size % y.size == 0:
            x.parts = (_Atom(size=y.size), _Atom(size=x.size // y.size))
            a, b = a[:i] + _leaves(a[i:]), b[:j] + _leaves(b[j:])
        elif y.size > x.size and y.size % x.size == 0:
            y.parts = (_Atom(size=x.size), _Atom(size=y.size // x.size))
            a, b = a[:i] + _leaves(a[i:]), b[:j] + _leaves(b[j:])
        else:
            return False
    return True


def _match_whole(left: _Atom, right: _Atom) -> bool:
    """Merges two atoms if neither is split, as most are; False if one is or their sizes differ."""
    x, y = _root(left), _root(right)
    if x is y:
        return True
    if x.parts is not None or y.parts is not None or x.size != y.size:
        return False
    if x.size != 1:  # those of size 1 are nobody's leaves
        y.same = x
    return True


def _match(a: list[_Atom], b: list[_Atom]) -> bool:
    """Merges leaves pairwise; False if their sizes differ."""
    if [x.size for x in a] != [y.size for y in b]:
        return False
    for x, y in zip(a, b, strict=True):
        one, other = _root(x), _root(y)
        if one is not other:
            other.same = one
    return True


def _read(
    graph: Graph,
    forest: list[tuple[list[_Atom], ...]],
    signatures: list[Signature],
    letters: list[list[_Atom]],
) -> SubDims:
    numbers: dict[int, int] = {}

    def number(atom: _Atom) -> int:
        if atom.number < 0:
            atom.number = len(numbers)
            numbers[atom.number] = atom.size
        return atom.number

    values = [[_leaves(dim) for dim in dims] for dims in forest]
    memo: dict[Any, OpDims] = {}
    return SubDims(
        shapes=tuple(tuple(tuple(a.size for a in dim) for dim in dims) for dims in values),
        atoms=tuple(tuple(number(a) for dim in dims for a in dim) for dims in values),
        ops=tuple(
            _op_dims(signature, [_leaves([atom]) for atom in atoms], number, memo)
            for signature, atoms in zip(signatures, letters, strict=True)
        ),
    )


def _op_dims(
    signature: Signature,
    parts: list[list[_Atom]],
    number: Callable[[_Atom], int],
    memo: dict[Any, OpDims],
) -> OpDims:
    """The node's leaves. `memo` holds those of nodes with the same signature and sizes: only their
    atoms differ."""
    numbers = tuple(number(leaf) for leaves in parts for leaf in leaves)
    key = id(signature), tuple(tuple(leaf.size for leaf in leaves) for leaves in parts)
    if key not in memo:
        memo[key] = _leaf_dims(signature, key[1])
    return replace(memo[key], atoms=numbers)


def _leaf_dims(signature: Signature, parts: tuple[tuple[int, ...], ...]) -> OpDims:
    first: list[int] = []
    sizes: list[int] = []
    letter: list[int] = []
    for index, leaves in enumerate(parts):
        first.append(len(sizes))
        sizes.extend(leaves)
        letter.extend([index] * len(leaves))

    def flat(tensor: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
        return tuple(first[x] + i for dim in tensor for x in dim for i in range(len(parts[x])))

    return OpDims(
        signature=signature,
        sizes=tuple(sizes),
        letter=tuple(letter),
        atoms=(),
        operands=tuple(map(flat, signature.operands)),
        results=tuple(map(flat, signature.results)),
        fixed=frozenset(_fixed(signature, letter)),
    )


def _fixed(signature: Signature, letter: list[int]) -> Iterator[int]:
    """The leaves that cannot be split. A kernel that takes an offset into a letter, or gathers
    along it, needs the shard to be contiguous. If a letter has two leaves, it is so only if the
    first one is split."""
    for leaf, mine in enumerate(letter):
        if mine in signature.fixed or (
            mine in signature.contiguous and leaf > 0 and letter[leaf - 1] == mine
        ):
            yield leaf
