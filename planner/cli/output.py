"""The output of the command line: the report or one JSON object on stdout, progress on stderr if
that is a terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cost_models.atomic_write import write_atomically
from cost_models.errors import BadValue
from cost_models.units import format_time

if TYPE_CHECKING:
    from rich.progress import Progress

    from planner.plans.plan import Plan
    from planner.report.sections import Section

__all__ = ["StepBar", "print_json", "print_plan", "print_sections", "progress_bar", "write_files"]

#: The width of a report in a pipe or a file, which have no width of their own.
PIPE_WIDTH = 110


def print_json(record: Mapping[str, Any]) -> None:
    """One object on stdout."""
    print(json.dumps(record, indent=2))


def print_sections(sections: Iterable[Section]) -> None:
    """The sections on stdout."""
    from rich.console import Console

    from planner.report.sections import show

    show(sections, Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False))


@contextlib.contextmanager
def progress_bar(total: float = 1.0) -> Iterator[Callable[[str, float], None]]:
    """A callable (what is being done, share done) that draws a bar on stderr, or does nothing if
    that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)

        def update(what: str, done: float) -> None:
            bar.update(task, description=what, completed=done)

        yield update


class StepBar:
    """The steps of a run as they are done: a bar on stderr, a line each on stdout (`say`)."""

    def __init__(self, what: str, total: int, *, say: bool) -> None:
        self.what, self.total, self.say = what, total, say
        self.bar: Progress | None = None

    def __enter__(self) -> StepBar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
            )

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.add_task(self.what, total=self.total)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def event(self, event: Mapping[str, Any]) -> None:
        """Shows that a step is done."""
        if "step" not in event:
            return
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], description="training", completed=event["step"])
        if self.say:
            several = ", ".join(f"{name} {loss:.6f}" for name, loss in event["losses"].items())
            loss = f"loss {event['loss']:.6f}" + (f" ({several})" if several else "")
            line = f"step {event['step']:>{len(str(self.total))}}  {loss}  {format_time(event['time_s'])}"
            if event.get("skipped"):
                line += f"  skipped: gradients overflowed, loss scale now {event['loss_scale']:g}"
            if self.bar is not None and sys.stdout.isatty():
                self.bar.console.print(line, highlight=False)  # above the bar, on the same terminal
            else:
                print(line, flush=True)


def write_files(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Writes every file whole, in order; the folder is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadValue(
            f"--out {folder} cannot be made: {error.strerror}; choose another with --out DIR"
        ) from error
    in_the_way = next((folder / name for name in contents if (folder / name).is_dir()), None)
    if in_the_way is not None:
        raise BadValue(
            f"--out {folder}: {in_the_way} is a folder, but a file of that name has to be "
            "written; choose another with --out DIR"
        )
    for name, content in contents.items():
        write_atomically(folder / name, content)


def print_plan(plan: Plan, files: Mapping[str, str], json_: bool) -> None:
    """Prints a plan as its report, or as JSON."""
    from planner.report.records import plan_record
    from planner.report.report import report

    if json_:
        print_json(plan_record(plan, files))
    else:
        print_sections(report(plan, files))
