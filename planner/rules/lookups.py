"""Lookups and their gradients: embeddings, gathers, scatters, indices."""

from __future__ import annotations

import math
from typing import Any

from planner.rules.signature import (
    Call,
    Letters,
    Local,
    LocalCall,
    OpCost,
    Signature,
    dim_of,
    register,
    unsplit,
)


def _embedding_args(call: Call, local: Local) -> LocalCall:
    if 0 not in local.split:
        return call.op, call.args[:2], ()
    return (
        "shardwright.embedding_shard",
        call.args[:2],
        (("offset", local.offsets[0]), ("rows", call.operands[0][0])),
    )


@register("aten.embedding.default", localize=_embedding_args)
def _embedding(call: Call) -> Signature:
    """weight [v, d], ids -> ids x d. If the vocabulary is split, a shard looks up its own rows and
    returns zeros for the others."""
    weight, ids = call.operands
    n = len(ids)
    sizes = (weight[0], weight[1], *ids)
    where = tuple((2 + d,) for d in range(n))
    return Signature(
        kind="embedding",
        sizes=sizes,
        operands=(((0,), (1,)), where),
        results=((*where, (1,)),),
        reduced=(frozenset({0}),),
        linear=(frozenset({0}),),
        contiguous=frozenset({0}),
        cost=lambda s: OpCost(flops=0.0, elements=2.0 * s[1] * math.prod(s[2:])),
    )


def _embedding_backward_args(call: Call, local: Local) -> LocalCall:
    if 0 not in local.split:
        return call.op, call.args, ()
    return (
        "shardwright.embedding_backward_shard",
        (*call.args[:2], local.sizes[0]),
        (("offset", local.offsets[0]),),
    )


@register("aten.embedding_dense_backward.default", localize=_embedding_backward_args)
def _embedding_backward(call: Call) -> Signature:
    """grad [ids, d], ids -> grad_weight [v, d], partial over the ids. Only torch's kernel can leave
    out the row `padding_idx`, for which it needs all rows, or scale rows by how often they are
    looked up, for which it needs all ids."""
    _, ids = call.operands
    (weight,) = call.results
    n, padding, by_frequency = len(ids), call.args[3], call.args[4]
    where = tuple((2 + d,) for d in range(n))
    letters = frozenset(range(2, 2 + n))
    fixed = (frozenset({0}) if padding >= 0 or by_frequency else frozenset()) | (
        letters if by_frequency else frozenset()
    )
    return Signature(
        kind="embedding",
        sizes=(weight[0], weight[1], *ids),
        operands=((*where, (1,)), where),
        results=(((0,), (1,)),),
        reduced=(letters,),
        linear=(frozenset({0}),),
        contiguous=frozenset({0}),
        fixed=fixed,
        cost=lambda s: OpCost(
            flops=float(s[1] * math.prod(s[2:])),
            elements=float(s[0] * s[1] + 2 * s[1] * math.prod(s[2:])),
        ),
    )


@register("aten.gather.default")
def _gather(call: Call) -> Signature:
    """The gathered dim can be split in the index, not in the input; other dims can be split if
    input and index agree in size."""
    shape, index = call.operands
    # Tensors without dims, or an empty index, which may have any number of dims.
    if not shape or len(index) != len(shape):
        return unsplit(call, "embedding")
    rank, dim = len(shape), dim_of(call, 1, len(shape))
    sizes = (*shape, *index)
    same = [d for d in range(rank) if d != dim and shape[d] == index[d]]
    where = tuple((d,) if d in same else (rank + d,) for d in range(rank))
    fixed = frozenset(set(range(2 * rank)) - {*same, rank + dim})
    return Signature(
        kind="embedding",
        sizes=sizes,
        operands=(tuple((d,) for d in range(rank)), where),
        results=(where,),
        fixed=fixed,
        linear=(frozenset({0}),),
        cost=lambda s: OpCost(flops=0.0, elements=3.0 * math.prod(s[x] for t in where for x in t)),
    )


@register(
    "aten.scatter.value", "aten.scatter.src", "aten.scatter_add.default", "aten.scatter_reduce.two"
)
def _scatter(call: Call) -> Signature:
    """The dim scattered along cannot be split; others can if all tensors agree in size."""
    shape, index, *sources = call.operands
    if not shape or any(len(other) != len(shape) for other in (index, *sources)):
        return unsplit(call, "embedding")
    rank, dim = len(shape), dim_of(call, 1, len(shape))
    sizes = (*shape, *index, *(size for source in sources for size in source))
    same = {d for d in range(rank) if d != dim and all(s[d] == shape[d] for s in (index, *sources))}
    letters = [
        tuple((d,) if d in same else (i * rank + d,) for d in range(rank))
        for i in range(2 + len(sources))
    ]
    together = (
        frozenset({0, 2}) if sources else frozenset({0}) if call.args[3] == 0 else frozenset()
    )
    if call.op == "aten.scatter_reduce.two":
        together = frozenset()
    return Signature(
        kind="embedding",
        sizes=sizes,
        operands=tuple(letters),
        results=(letters[0],),
        fixed=frozenset(range(len(sizes))) - same,
        linear=(together,) if together else (),
    )


@register("aten.index_select.default", "aten.index_add.default")
def _index_along(call: Call) -> Signature:
    """x, ids (, source): one dim of x is indexed by a list of ids. The ids' letter can be split
    if x is only read there."""
    shape, ids, *source = call.operands
    if not shape:
        return unsplit(call, "embedding")
    rank, dim = len(shape), dim_of(call, 1, len(shape))
    whole = tuple((d,) for d in range(rank))
    picked = tuple((rank,) if d == dim else (d,) for d in range(rank))
    where: Letters = ((rank,),) if ids else ()
    return Signature(
        kind="embedding",
        sizes=(*shape, math.prod(ids)),
        operands=(whole, where, *((picked,) if source else ())),
        results=(whole if source else picked,),
        fixed=frozenset({dim, rank} if source else {dim}),
        linear=(frozenset({0, 2} if source else {0}),),
    )


def _index_letters(
    shape: tuple[int, ...], indices: tuple[Any, ...], ids: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, ...], Letters, list[Letters], frozenset[int]]:
    """Letter sizes, the letters of `x[indices]`, those of each tensor of ids, and the dims of x
    that are indexed."""
    rank, at = len(shape), [d for d, index in enumerate(indices) if index is not None]
    together = tuple(_broadcast_shape(ids))
    where: Letters = tuple((rank + d,) for d in range(len(together)))
    letters: list[Letters] = [
        tuple(
            w if size == whole else ()
            for size, whole, w in zip(i, together[-len(i) :], where[-len(i) :], strict=True)
        )
        if i
        else ()
        for i in ids
    ]
    first = at[0] if at == list(range(at[0], at[0] + len(at))) else 0
    rest: list[tuple[int, ...]] = [(d,) for d in range(rank) if d not in at]
    result = (*rest[:first], *where, *rest[first:])
    return (*shape, *together), result, letters, frozenset(at)


def _broadcast_shape(shapes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """The shape to which all of them broadcast."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(s)) + s for s in shapes]
    return tuple(
        next((size for size in column if size != 1), 1) for column in zip(*padded, strict=True)
    )


@register("aten.index.Tensor")
def _index(call: Call) -> Signature:
    """x[ids, :, ids]: indexed dims of x cannot be split, those of the ids can."""
    shape, *ids = call.operands
    sizes, result, letters, looked_up = _index_letters(shape, call.args[1], tuple(ids))
    return Signature(
        kind="embedding",
        sizes=sizes,
        operands=(tuple((d,) for d in range(len(shape))), *letters),
        results=(result,),
        fixed=looked_up,
        linear=(frozenset({0}),),
    )


@register("aten.index_put.default")
def _index_put(call: Call) -> Signature:
    """x after x[ids] = values, or += values: only dims of x that are not indexed can be split."""
    shape, *ids, values = call.operands
    sizes, result, letters, looked_up = _index_letters(shape, call.args[1], tuple(ids))
    whole = tuple((d,) for d in range(len(shape)))
    full = tuple(math.prod(sizes[x] for x in dim) for dim in result)
    lead = len(full) - len(values)
    at_values = tuple(
        result[lead + d] if size == full[lead + d] else () for d, size in enumerate(values)
    )
    return Signature(
        kind="embedding",
        sizes=sizes,
        operands=(whole, *letters, at_values),
        results=(whole,),
        fixed=looked_up | frozenset(range(len(shape), len(sizes))),
        linear=(frozenset({0, len(call.operands) - 1}),),
    )
