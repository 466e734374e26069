"""Strategies: how one op, or one parameter, can be laid out on the mesh.

On each mesh axis an op takes one `Option`: whole (every shard does all of it), split at one of its
leaves, or linear (its operands of one group are partial sums, and so is its result). A strategy is
an option for every axis; the layouts of all operands and results follow. A parameter's options say
where it is stored and where it is updated: the stages of ZeRO.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from planner.dims.subdims import OpDims
from planner.graph.layout import PARTIAL_SUM, REPLICATE, Layout, Mesh, local_sizes, piece_sizes
from planner.rules import Local

__all__ = [
    "ACROSS",
    "AGAIN",
    "KEPT",
    "MODES",
    "ONCE",
    "SECOND",
    "Option",
    "ParameterStrategy",
    "Strategy",
    "local_of",
    "op_strategies",
    "options_of",
    "parameter_options",
    "parameter_strategies",
    "placed_by",
    "shape_of_result",
]


@dataclass(frozen=True, slots=True)
class Option:
    """What one axis does to an op: `whole`, `split` (leaf `number`), `linear` (group `number`); or
    to a parameter: `whole`, `split` (stored and updated in pieces: tensor parallel, ZeRO-3),
    `update` (updated in pieces, kept whole within a step: ZeRO-1/2)."""

    kind: str
    number: int = -1


WHOLE = Option("whole")

#: What becomes of an op's results between forward and backward. `kept`: results that backward reads
#: stay. `again`: they are freed after their last reader in forward, and the op runs once more in
#: backward; those that other layers read stay. `across`: the same, and those do not stay either.
#: `once`: nothing in backward needs them.
KEPT, AGAIN, ONCE, ACROSS = MODES = ("kept", "again", "once", "across")

#: The modes of ops that run again.
SECOND = frozenset({AGAIN, ACROSS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """An option for each axis, the layouts of operands and results that follow, the local sizes of
    the leaves, and the mode of the op's results: one of `MODES`."""

    options: tuple[Option, ...]
    operands: tuple[Layout, ...]
    results: tuple[Layout, ...]
    sizes: tuple[int, ...]
    mode: str = KEPT

    def axes_of(self, leaf: int) -> tuple[int, ...]:
        """The mesh axes that split `leaf`."""
        return tuple(
            a for a, o in enumerate(self.options) if o.kind == "split" and o.number == leaf
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterStrategy:
    """The layout `updated`, in which a parameter is updated and held between steps, and the layout
    `stored`, in which a step keeps it. If the two differ, it is gathered once, ahead of its first
    reading, and kept until its last (ZeRO-1/2)."""

    options: tuple[Option, ...]
    stored: Layout
    updated: Layout


#: (axis, option) -> whether a pin allows it.
Allowed = Callable[[int, Option], bool]


def options_of(dims: OpDims) -> tuple[Option, ...]:
    """All options of an op on one axis."""
    signature = dims.signature
    splits = [Option("split", leaf) for leaf in range(len(dims.sizes)) if leaf not in dims.fixed]
    groups = [Option("linear", g) for g, group in enumerate(signature.linear) if group]
    return (WHOLE, *splits, *groups)


def op_strategies(
    dims: OpDims, mesh_sizes: tuple[int, ...], allowed: Allowed
) -> tuple[Strategy, ...]:
    """All strategies of an op that the mesh divides and the pins allow."""
    placed = {option: placed_by(dims, option) for option in options_of(dims)}
    per_axis = [
        [(o, *found) for o, found in placed.items() if allowed(axis, o)]
        for axis in range(len(mesh_sizes))
    ]
    out = []
    for chosen in itertools.product(*per_axis):
        options, leaves, operands, results = zip(*chosen, strict=True)
        sizes = local_sizes(dims.sizes, leaves, mesh_sizes)
        if sizes is not None:
            out.append(
                Strategy(
                    options=options,
                    operands=tuple(zip(*operands, strict=True)),
                    results=tuple(zip(*results, strict=True)),
                    sizes=sizes,
                )
            )
    return tuple(out)


def placed_by(dims: OpDims, option: Option) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """The leaf that an option of one axis splits (or none), and the placements of all operands and
    results on that axis."""
    return (
        option.number if option.kind == "split" else REPLICATE,
        tuple(
            _operand_placement(dims, position, leaves, option)
            for position, leaves in enumerate(dims.operands)
        ),
        tuple(
            _result_placement(dims, index, leaves, option)
            for index, leaves in enumerate(dims.results)
        ),
    )


def _operand_placement(dims: OpDims, position: int, leaves: tuple[int, ...], option: Option) -> int:
    if option.kind == "linear":
        return PARTIAL_SUM if position in dims.signature.linear[option.number] else REPLICATE
    return (
        leaves.index(option.number)
        if option.kind == "split" and option.number in leaves
        else REPLICATE
    )


def _result_placement(dims: OpDims, index: int, leaves: tuple[int, ...], option: Option) -> int:
    if option.kind == "linear":
        return PARTIAL_SUM
    if option.kind == "split":
        if option.number in leaves:
            return leaves.index(option.number)
        if dims.letter[option.number] in dims.signature.reduced_in(index):
            return PARTIAL_SUM
    return REPLICATE


def local_of(
    dims: OpDims,
    leaves: Layout,
    mesh: Mesh,
    rank: int,
    sizes: tuple[int, ...],
    results: tuple[tuple[int, ...], ...],
) -> Local:
    """How an op runs on the shard of `rank`. Axis a splits leaf `leaves[a]`, or none (`REPLICATE`);
    `sizes` are the local sizes of its letters, `results` the local shapes of its results."""
    split: dict[int, tuple[int, ...]] = {}
    for axis, leaf in enumerate(leaves):
        if leaf >= 0:
            split[dims.letter[leaf]] = (*split.get(dims.letter[leaf], ()), axis)
    pieces: dict[int, tuple[int, ...]] = {}
    offsets: dict[int, int] = {}
    for letter in dims.signature.contiguous.intersection(split):
        axes, leaf = split[letter], dims.letter.index(letter)
        run = math.prod(
            size
            for other, size in enumerate(dims.sizes)
            if dims.letter[other] == letter and other != leaf
        )
        pieces[letter] = tuple(
            piece * run
            for piece in piece_sizes(dims.sizes[leaf], tuple(mesh.sizes[a] for a in axes))
        )
        offsets[letter] = sum(pieces[letter][: mesh.position(axes, rank)])
    parts = _parts(dims, leaves, mesh, rank) if dims.signature.placed else ()
    return Local(
        results=results, split=split, sizes=sizes, pieces=pieces, offsets=offsets, leaves=parts
    )


def _parts(
    dims: OpDims, leaves: Layout, mesh: Mesh, rank: int
) -> tuple[tuple[tuple[int, int, int], ...], ...]:
    """For each letter, its leaves as (size, size of this rank's shard, first element of that)."""
    out: list[list[tuple[int, int, int]]] = [[] for _ in dims.signature.sizes]
    for leaf, letter in enumerate(dims.letter):
        axes = tuple(axis for axis, split in enumerate(leaves) if split == leaf)
        pieces = piece_sizes(dims.sizes[leaf], tuple(mesh.sizes[a] for a in axes))
        at = mesh.position(axes, rank)
        out[letter].append((dims.sizes[leaf], pieces[at], sum(pieces[:at])))
    return tuple(map(tuple, out))


def shape_of_result(
    dims: OpDims, result: int, letters: tuple[int, ...], whole: tuple[int, ...]
) -> tuple[int, ...]:
    """The local shape of a result, given the local sizes of the letters. A result that is never
    read may have no letters and keeps its `whole` shape; so does a dim without letters (of size 1,
    or of size 0: statistics that were not asked for)."""
    table = dims.signature.results[result]
    if len(table) != len(whole):
        return whole
    return tuple(
        math.prod(letters[letter] for letter in dim) if dim else size
        for dim, size in zip(table, whole, strict=True)
    )


def parameter_options(num_flat: int) -> tuple[Option, ...]:
    """All options of a parameter with `num_flat` sub-dims on one axis."""
    places = range(num_flat)
    return (WHOLE, *(Option("update", k) for k in places), *(Option("split", k) for k in places))


def parameter_strategies(
    flat: tuple[int, ...], mesh_sizes: tuple[int, ...], allowed: Allowed
) -> tuple[ParameterStrategy, ...]:
    """All ways to store and update a parameter that the mesh divides and the pins allow."""
    options = parameter_options(len(flat))
    per_axis = [[o for o in options if allowed(axis, o)] for axis in range(len(mesh_sizes))]
    out = []
    for chosen in itertools.product(*per_axis):
        stored = tuple(o.number if o.kind == "split" else REPLICATE for o in chosen)
        updated = tuple(o.number if o.kind != "whole" else REPLICATE for o in chosen)
        if local_sizes(flat, updated, mesh_sizes) is not None and _nested(chosen):
            out.append(ParameterStrategy(options=chosen, stored=stored, updated=updated))
    return tuple(out)


def _nested(chosen: tuple[Option, ...]) -> bool:
    """Whether `update` axes are the innermost on their sub-dim, as the gather after the update
    needs."""
    for axis, option in enumerate(chosen):
        if option.kind == "update" and any(
            o.kind == "split" and o.number == option.number for o in chosen[axis + 1 :]
        ):
            return False
    return True
