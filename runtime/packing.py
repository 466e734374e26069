"""The flat buffer of a collective: its values are packed into one, and what arrives is unpacked by
flat sub-dims, in mesh order of the ranks. A sub-dim that leads is unpacked without a copy.

A buffer is `[m]` or, if each rank gets a piece of its own, `[ranks, m]`. If the ranks' pieces
differ in size, each value has as much room in a row as its largest piece takes: all backends send
equal rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from planner.program.program import Communicate

__all__ = ["Packing"]


class Packing:
    """How the values of a `Communicate` lie in its buffers, on the rank at `position` in a group of
    `size`."""

    def __init__(self, instruction: Communicate, size: int, position: int) -> None:
        self.size = size
        self.position = position
        self.shapes = instruction.shapes
        self.expanded = instruction.expanded
        self.gather = instruction.gather
        self.split = instruction.split
        self.gather_pieces = self._pieces(instruction.gather_pieces, instruction.gather)
        self.split_pieces = self._pieces(instruction.split_pieces, instruction.split)
        self.uneven = any(len(set(p)) > 1 for p in (*self.gather_pieces, *self.split_pieces))

    def _pieces(self, given: Sequence[tuple[int, ...]], dim: int | None) -> list[tuple[int, ...]]:
        """By value, the ranks' sizes of sub-dim `dim`."""
        if dim is None:
            return []
        pieces = given or ((),) * len(self.expanded)
        # Before a split, a rank has all of it; before a gather, its own piece.
        whole = dim == self.split
        alike = [(e[dim] // self.size if whole else e[dim],) * self.size for e in self.expanded]
        return [p or a for p, a in zip(pieces, alike, strict=True)]

    def pack(self, values: Sequence[Tensor]) -> Tensor:
        """The values as one buffer [m]; lazy conjugates are resolved."""
        if len(values) == 1:
            return _as_held(values[0]).view(-1)
        return torch.cat([value.reshape(-1) for value in values])

    def pack_into(self, row: Tensor, values: Sequence[Tensor]) -> None:
        """Writes the values to `row` [m], in the same order."""
        if len(values) == 1:
            row.view(values[0].shape).copy_(values[0])
        else:
            torch.cat([value.reshape(-1) for value in values], out=row)

    def room(self, value: int) -> int:
        """The number of elements of a value's largest piece that a rank sends to another."""
        sizes = list(self.expanded[value])
        if self.gather is not None:
            sizes[self.gather] = max(self.gather_pieces[value])
        if self.split is not None:
            sizes[self.split] = max(self.split_pieces[value])
        return math.prod(sizes)

    def pack_padded(self, values: Sequence[Tensor]) -> Tensor:
        """The values as one buffer [m] with room for the largest piece of each."""
        buffer = values[0].new_zeros(sum(map(self.room, range(len(values)))))
        at = 0
        for i, value in enumerate(values):
            buffer[at : at + value.numel()] = value.reshape(-1)
            at += self.room(i)
        return buffer

    def pack_blocks(self, values: Sequence[Tensor]) -> Tensor:
        """The values as one buffer [ranks, m]: row r has rank r's pieces along sub-dim `split`."""
        assert self.split is not None
        if self.uneven:
            return torch.stack(
                [
                    self.pack_padded(row)
                    for row in zip(*map(self.cut, range(len(values)), values), strict=True)
                ]
            )
        rows = []
        for value, expanded in zip(values, self.expanded, strict=True):
            sizes = (
                *expanded[: self.split],
                self.size,
                expanded[self.split] // self.size,
                *expanded[self.split + 1 :],
            )
            rows.append(value.reshape(sizes).movedim(self.split, 0).reshape(self.size, -1))
        return _as_held(rows[0]) if len(rows) == 1 else torch.cat(rows, 1)

    def cut(self, i: int, value: Tensor) -> tuple[Tensor, ...]:
        """Each rank's piece of a value."""
        assert self.split is not None
        return torch.split(value.reshape(self.expanded[i]), list(self.split_pieces[i]), self.split)

    def unpack(self, buffer: Tensor) -> tuple[Tensor, ...]:
        """The results in a buffer [m]."""
        if self.uneven:
            return self._unpack_padded(buffer)
        if len(self.shapes) == 1:
            return (buffer.view(self.shapes[0]),)
        parts = torch.split(buffer, [math.prod(shape) for shape in self.shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, self.shapes, strict=True))

    def _unpack_padded(self, buffer: Tensor) -> tuple[Tensor, ...]:
        out, at = [], 0
        for i, shape in enumerate(self.shapes):
            out.append(buffer[at : at + math.prod(shape)].view(shape))
            at += self.room(i)
        return tuple(out)

    def _merge_padded(self, buffer: Tensor) -> tuple[Tensor, ...]:
        """`unpack_blocks` if the ranks' pieces differ in size."""
        assert self.gather is not None
        out, at = [], 0
        for i, shape in enumerate(self.shapes):
            sizes = list(self.expanded[i])
            if self.split is not None:
                sizes[self.split] = self.split_pieces[i][self.position]
            parts = []
            for row, piece in zip(buffer, self.gather_pieces[i], strict=True):
                sizes[self.gather] = piece
                parts.append(row[at : at + math.prod(sizes)].view(sizes))
            out.append(torch.cat(parts, self.gather).reshape(shape))
            at += self.room(i)
        return tuple(out)

    def unpack_blocks(self, buffer: Tensor, sizes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
        """The results in a buffer [ranks, m] of values of flat sub-dim `sizes`: the ranks are
        merged into sub-dim `gather`. They are contiguous, even if the ranks have one element each
        and a view would do: see `collectives._Slice`."""
        assert self.gather is not None
        if self.uneven:
            return self._merge_padded(buffer)
        out, at = [], 0
        for flat, shape in zip(sizes, self.shapes, strict=True):
            length = math.prod(flat)
            block = buffer[:, at : at + length].view(self.size, *flat)
            out.append(block.movedim(0, self.gather).reshape(shape).contiguous())
            at += length
        return tuple(out)


def _as_held(value: Tensor) -> Tensor:
    """The value as other ranks can read it: contiguous, with a lazy conjugate resolved."""
    return value.contiguous().resolve_conj()
