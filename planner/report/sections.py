"""Sections of lines and tables, and the two ways to draw them: in the terminal with rich, and as
Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Section", "Table", "markdown", "show"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text under a header; `right` are the columns aligned to the right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A title over lines and tables."""

    title: str
    body: tuple[str | Table, ...]


def show(sections: Iterable[Section], console: Console) -> None:
    """Draws the sections in a terminal, or into a pipe; nothing is cut off, cells wrap."""
    from rich.text import Text

    for number, section in enumerate(sections):
        if number:
            console.print()
        console.print(Text(section.title, style="bold cyan"))
        for before, part in zip((None, *section.body), section.body, strict=False):
            if isinstance(part, Table) and isinstance(before, Table):
                console.print()
            console.print(Text(part) if isinstance(part, str) else _rich_table(part))


def _rich_table(table: Table) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        box=SIMPLE_HEAD,
        show_header=bool(table.header),
        pad_edge=False,
        show_edge=False,
        header_style="bold",
    )
    for index in range(max(map(len, (table.header, *table.rows)))):
        title = table.header[index] if index < len(table.header) else ""
        drawn.add_column(
            Text(title),
            justify="right" if index in table.right else "left",
            overflow="fold",
            no_wrap=not index,
        )
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    return drawn


def markdown(sections: Iterable[Section]) -> str:
    """The same as a Markdown file."""
    out: list[str] = []
    for number, section in enumerate(sections):
        out += [f"{'#' if number == 0 else '##'} {section.title}", ""]
        for part in section.body:
            out += [*_markdown_table(part), ""] if isinstance(part, Table) else [_escape(part), ""]
    return "\n".join(out)


def _markdown_table(table: Table) -> list[str]:
    width = max(map(len, (table.header, *table.rows)))
    header = table.header or ("",) * width
    rule = ["--:" if index in table.right else "---" for index in range(width)]
    return [_markdown_row(header), _markdown_row(rule), *map(_markdown_row, table.rows)]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escape, cells)) + " |"


def _escape(text: str) -> str:
    """`*`, `_` and `|` as themselves: module patterns are full of them."""
    for mark in ("*", "|"):
        text = text.replace(mark, f"\\{mark}")
    return text
