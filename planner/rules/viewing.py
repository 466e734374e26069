"""Ops that look at a tensor in another shape or order: reshape and permute."""

from __future__ import annotations

import math
from itertools import pairwise

from planner.rules.signature import (
    Call,
    Letters,
    Local,
    LocalCall,
    Signature,
    no_cost,
    register,
)

__all__ = ["common_letters"]


def common_letters(
    before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[tuple[int, ...], Letters, Letters] | None:
    """Letters that write both shapes as products, row-major: (4, 6) -> (2, 12) gives sizes (2, 2,
    6) and the letters of each shape.

    None if the boundaries do not nest, as in (2, 3) -> (3, 2): then no dim can be split.
    """
    if math.prod(before) != math.prod(after) or 0 in before:
        return None
    cuts = sorted(
        {math.prod(before[i:]) for i in range(len(before) + 1)}
        | {math.prod(after[i:]) for i in range(len(after) + 1)}
    )
    for small, large in pairwise(cuts):
        if large % small:
            return None
    sizes = tuple(large // small for small, large in pairwise(cuts))[::-1]
    return sizes, _letters_of(before, cuts[::-1]), _letters_of(after, cuts[::-1])


def _letters_of(shape: tuple[int, ...], cuts: list[int]) -> Letters:
    out, letter = [], 0
    for i, size in enumerate(shape):
        end = math.prod(shape[i + 1 :])
        letters: list[int] = []
        while size > 1 and letter < len(cuts) - 1 and cuts[letter + 1] >= end:
            letters.append(letter)
            letter += 1
        out.append(tuple(letters))
    return tuple(out)


def _reshape_args(call: Call, local: Local) -> LocalCall:
    return call.op, (call.args[0], local.results[0]), ()


@register("shardwright.reshape", localize=_reshape_args)
def _reshape(call: Call) -> Signature:
    (before,), (after,) = call.operands, call.results
    found = common_letters(before, after)
    if found is None:
        return _opaque(before, after)
    sizes, operand, result = found
    return Signature(
        kind="view",
        sizes=sizes,
        operands=(operand,),
        results=(result,),
        linear=(frozenset({0}),),
        view=True,
    )


def _opaque(before: tuple[int, ...], after: tuple[int, ...]) -> Signature:
    """A reshape whose dims do not nest: nothing can be split, but partial sums pass."""
    sizes = (*before, *after)
    return Signature(
        kind="view",
        sizes=sizes,
        operands=(tuple((d,) for d in range(len(before))),),
        results=(tuple((len(before) + d,) for d in range(len(after))),),
        fixed=frozenset(range(len(sizes))),
        linear=(frozenset({0}),),
        cost=no_cost,
    )


@register("aten.permute.default")
def _permute(call: Call) -> Signature:
    (shape,) = call.operands
    order = call.args[1]
    return Signature(
        kind="view",
        sizes=shape,
        operands=(tuple((d,) for d in range(len(shape))),),
        results=(tuple((d,) for d in order),),
        linear=(frozenset({0}),),
        view=True,
    )
