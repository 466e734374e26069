"""The executor's copies around a collective: values are packed into one buffer, and results are
unpacked from it.

Shapes of a change of layout -> `Copies`. Memory is row-major, so a piece along the leading sub-dim
is contiguous, and a view of it is free. Anything else is copied, read and written once:

* a slice along another sub-dim, or of a value that is freed there (a view would keep all of it);
* several values that go into one buffer, and their results, taken out of the rows of a gathered
  one;
* a value sent in blocks, or gathered, along a sub-dim other than the leading one;
* a value that an all-reduce would overwrite although it is still read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from planner.program.program import Communicate

__all__ = ["Copies", "copies_of", "is_uneven", "leads", "slice_copies"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Elements copied before (`packed`) and after (`unpacked`) a collective, and by how many
    kernels."""

    packed: int = 0
    num_packed: int = 0
    unpacked: int = 0
    num_unpacked: int = 0


def copies_of(
    kind: str,
    *,
    ranks: int,
    before: Sequence[Shape],
    after: Sequence[int],
    gather: int | None,
    split: int | None,
    uneven: bool = False,
    overwritten: bool = True,
) -> Copies:
    """The copies of a collective of `kind` over `ranks` ranks, for values with flat local shapes
    `before` and numbers of elements `after`.

    `uneven`: the ranks' pieces differ in size. `overwritten`: no instruction reads the sources
    afterwards.
    """
    if ranks == 1:
        return Copies()
    held = sum(map(math.prod, before))
    if kind == "slice":
        copied = sum(
            n
            for flat, n in zip(before, after, strict=True)
            if overwritten or not leads(flat, split)
        )
        return Copies(packed=copied, num_packed=len(before) if copied else 0)
    together = len(before) > 1
    if kind == "all_reduce":
        copied = together or not overwritten
        return Copies(packed=held if copied else 0, num_packed=int(copied))
    packed, num_packed = (held, 1) if together or uneven else (0, 0)
    if split is not None:
        turned = [math.prod(flat) for flat in before if uneven or not leads(flat, split)]
        packed, num_packed = packed + sum(turned), num_packed + len(turned)
    if gather is None:
        return Copies(packed=packed, num_packed=num_packed)
    sent = [_piece(flat, split, ranks) for flat in before]
    arrived = [
        n
        for flat, n in zip(sent, after, strict=True)
        if together or uneven or not leads(flat, gather)
    ]
    return Copies(
        packed=packed, num_packed=num_packed, unpacked=sum(arrived), num_unpacked=len(arrived)
    )


def leads(flat: Sequence[int], dim: int | None) -> bool:
    """Whether pieces along sub-dim `dim` are contiguous in memory."""
    assert dim is not None
    return math.prod(flat[:dim]) <= 1


def is_uneven(message: Communicate) -> bool:
    """Whether the pieces of the ranks differ in size."""
    return any(len(set(pieces)) > 1 for pieces in (*message.gather_pieces, *message.split_pieces))


def slice_copies(message: Communicate) -> bool:
    """Whether the pieces that a slice keeps are copied: they are unless they are contiguous in the
    value."""
    return any(not leads(flat, message.split) for flat in message.expanded)


def _piece(flat: Shape, split: int | None, ranks: int) -> Shape:
    """The shape of one rank's piece of a value that is split."""
    return flat if split is None else (*flat[:split], flat[split] // ranks, *flat[split + 1 :])
