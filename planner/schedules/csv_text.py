"""Schedules as CSV, as torch writes and reads the compute actions of its own: a row for each place,
an action in a cell, `0F0,0F1,1B0`. An empty cell is a pause in torch's drawings and means nothing.
`show_csv` and `read_csv` are inverses."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from cost_models.errors import BadValue
from planner.program.actions import Action
from planner.schedules.check_schedule import checked
from planner.schedules.schedule import BODIES, Schedule

__all__ = ["load_schedule", "read_csv", "show_csv"]

_CELL = re.compile(r"(\d+)([A-Z_]+)(\d*)")
#: Two actions that torch may overlap: `(0F5;7B1)OVERLAP_F_B`. They run in this order here.
_PAIR = re.compile(r"\(([^;()]+);([^;()]+)\)OVERLAP_F_B")


def show_csv(schedule: Schedule) -> str:
    """The CSV of a schedule, in torch's format `compute_only`."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(schedule.orders)
    return out.getvalue()


def load_schedule(path: Path) -> Schedule:
    """The schedule of a CSV file, checked; its name is the file's, without `.csv`. Raises BadValue
    if there is no such file, with row and column for what is no action, or if it cannot run."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadValue(f"schedule file {str(path)!r} cannot be read: {error}") from None
    try:
        return read_csv(text, path.stem)
    except BadValue as error:
        raise BadValue(f"schedule file {str(path)!r}: {error}") from None


def read_csv(text: str, name: str) -> Schedule:
    """The schedule of a text, checked: as many microbatches and stages as there are in it. Raises
    BadValue as `load_schedule`."""
    rows = list(csv.reader(text.splitlines()))
    orders = tuple(
        tuple(
            action
            for at, cell in enumerate(row, 1)
            for action in _cell(cell, f"row {place}, column {at}")
        )
        for place, row in enumerate(rows, 1)
    )
    for place, order in enumerate(orders, 1):
        if not order:
            raise BadValue(f"row {place} has no action: every pipeline rank runs a stage")
    if not orders:
        raise BadValue("the file has no row: write one for each pipeline rank, such as 0F0,0B0")
    places = {action.stage: place for place, order in enumerate(orders) for action in order}
    num_stages = 1 + max(places)
    if missing := [stage for stage in range(num_stages) if stage not in places]:
        raise BadValue(f"stage {missing[0]} of {num_stages} is in no row")
    return checked(
        Schedule(
            name=name,
            microbatches=1 + max(action.microbatch for order in orders for action in order),
            places=tuple(places[stage] for stage in range(num_stages)),
            orders=orders,
        )
    )


def _cell(cell: str, where: str) -> tuple[Action, ...]:
    """The actions of a cell: none, one, or two that torch overlaps."""
    if not (word := cell.strip()):
        return ()
    if pair := _PAIR.fullmatch(word):
        return (*_cell(pair[1], where), *_cell(pair[2], where))
    match = _CELL.fullmatch(word)
    if match is None or (match[2] in BODIES and not match[3]):
        raise BadValue(
            f"{where}: {word!r} is no action: write stage, body ({', '.join(BODIES)}) and "
            "microbatch, such as 2F0"
        )
    if match[2] not in BODIES:
        raise BadValue(
            f"{where}: {word!r} is not of the bodies {', '.join(BODIES)}: sends, receives and "
            "reductions follow from these; leave it out"
        )
    return (Action(match[2], int(match[3]), int(match[1])),)
