"""Where the command line's words go: the report or one JSON object to stdout, progress to stderr and only if a person sees it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cost_models.atomic_write import write_atomically
from cost_models.errors import BadValue

if TYPE_CHECKING:
    from planner.report import Section

__all__ = ["print_json", "print_sections", "progress_bar", "write_files"]

#: The width of a report in a pipe or a file, where there is no terminal to ask.
PIPE_WIDTH = 110


def print_json(record: Mapping[str, Any]) -> None:
    """One object on stdout."""
    print(json.dumps(record, indent=2))


def print_sections(sections: Iterable[Section]) -> None:
    """The sections on stdout."""
    from rich.console import Console

    from planner.report import show

    show(sections, Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False))


@contextlib.contextmanager
def progress_bar(total: float = 1.0) -> Iterator[Callable[[str, float], None]]:
    """A callable (what is being done, how far) that draws a bar on stderr, or does nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield lambda what, done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda what, done: bar.update(task, description=what, completed=done)


def write_files(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Writes every file whole, in order; the folder is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadValue(f"--out {folder} cannot be made: {error.strerror}; choose another with --out DIR") from error
    for name, content in contents.items():
        write_atomically(folder / name, content)
