"""Rows of cells as lines of columns, for the texts of graphs and programs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

__all__ = ["aligned"]


def aligned(rows: Sequence[Sequence[str]], right: tuple[int, ...] = ()) -> list[str]:
    """Rows of cells as lines of columns, two spaces apart; the columns `right` are aligned right.
    Widths are multiples of four, so that a change of one line seldom moves the others."""
    widths = [-(-max(map(len, column)) // 4) * 4 for column in zip_longest(*rows, fillvalue="")]
    lines = (
        "  ".join(
            c.rjust(w) if at in right else c.ljust(w)
            for at, (c, w) in enumerate(zip(row, widths, strict=False))
        )
        for row in rows
    )
    return [line.rstrip() for line in lines]
