"""`plan solve FILE`: the solver alone, on a problem in the contest's format."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from cost_models.atomic_write import write_atomically
from cost_models.errors import BadValue, DoesNotFit, NoPlan
from planner.cli.group import uncollected
from planner.cli.options import SECONDS, as_json, check_option, json_option
from planner.cli.output import print_json
from planner.graph.checking import checked, checking

if TYPE_CHECKING:
    from planner.solver.problem.problem import Problem
    from planner.solver.problem.solution import Solution

__all__ = ["solve"]

#: Seconds between two lines of progress on a terminal.
_EVERY = 0.2


@click.command()
@click.argument("file", metavar="FILE")
@click.option(
    "--time-limit",
    type=SECONDS,
    default=60.0,
    show_default=True,
    help="Time limit, including the time to read the file.",
)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the choice to this file, as a JSON list.",
)
@click.option(
    "--show",
    is_flag=True,
    help="Print the problem with the choice marked; for small problems.",
)
@check_option("the choice, its cost, its memory and the bound against the problem's tables")
@json_option
@click.pass_context
def solve(
    context: click.Context,
    /,
    file: str,
    time_limit: float,
    out: Path | None,
    show: bool,
    check: bool,
    json_: bool,
) -> None:
    """Solve a strategy-selection problem within a time limit.

    FILE is in the format of the ASPLOS/EuroSys 2025 contest, as JSON or gzipped JSON. Ctrl-C ends
    the search and keeps the best choice so far.
    """
    began = time.perf_counter()
    json_ = as_json(context, json_)
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise BadValue(f"--out {out}: give a file in a folder that exists")
    from planner.solver.exact.anytime import certify
    from planner.solver.problem.check import solution_faults
    from planner.solver.problem.contest import read_contest
    from planner.solver.problem.text import problem_text

    with _told(began) as tell, _stoppable() as stopped:
        with uncollected():
            problem = read_contest(Path(file))
        solution = certify(problem, time_limit=time_limit, began=began, tell=tell, stopped=stopped)
    _refuse(problem, solution)
    with checking(check):
        checked("solving", lambda: solution_faults(problem, solution))
    if out is not None:
        write_atomically(out, json.dumps(list(solution.choice)) + "\n")
    record = _record(problem, solution)
    if json_:
        print_json(
            {
                **record,
                **(
                    {"problem": problem_text(problem, solution.choice).splitlines()} if show else {}
                ),
            }
        )
    else:
        _print(record, out)
        if show:
            print("", problem_text(problem, solution.choice), sep="\n", end="")


def _record(problem: Problem, solution: Solution) -> dict[str, Any]:
    """The record that `--json` prints. If all costs are whole numbers, so is the bound."""
    bound = solution.bound
    if problem.is_integral and bound > -float("inf"):
        bound = math.floor(bound)
    limit = problem.limit
    return {
        "cost": solution.objective,
        "bound": None if bound == -float("inf") else bound,
        "gap": _gap(solution),
        "status": solution.status,
        "peak": problem.peak(solution.choice),
        "limit": None if limit == float("inf") else limit,
        "time_s": round(solution.time_s, 3),
    }


def _gap(solution: Solution) -> float | None:
    return None if solution.bound == -float("inf") else solution.gap


def _refuse(problem: Problem, solution: Solution) -> None:
    """Raises NoPlan or DoesNotFit if there is no choice to return."""
    if solution.status in ("optimal", "feasible"):
        return
    if (
        solution.objective == float("inf")
        and not solution.choice
        and solution.lean_bound == float("inf")
    ):
        raise NoPlan("every choice contains a forbidden strategy or pair (a cost of 10^17 or more)")
    if solution.status == "unknown":
        raise DoesNotFit(
            f"no choice within the limit of {problem.limit} bytes was found in time: raise "
            "--time-limit"
        )
    at = problem.clock[solution.lean_at] if problem.clock else solution.lean_at
    least = solution.lean_bound
    exact = bool(solution.choice) and problem.peak(solution.choice) <= least * (1 + 1e-6)
    told = (
        f"the smallest possible peak is {least:.0f}, at time {at}"
        if exact
        else f"every choice peaks at {least:.0f} or more"
    )
    raise DoesNotFit(
        f"no choice fits the limit of {problem.limit} bytes: {told}; raise usage_limit"
    )


def _print(record: dict[str, Any], out: Path | None) -> None:
    """Prints the record for people."""
    gap = "" if record["gap"] is None else f"{100 * record['gap']:.4f} %"
    share = (
        f" ({100 * record['peak'] / record['limit']:.2f} % of the limit of {record['limit']:,})"
        if record["limit"]
        else ""
    )
    rows = [
        ("cost", f"{record['cost']:,}"),
        ("bound", "none" if record["bound"] is None else f"{record['bound']:,}"),
        ("gap", gap or "none"),
        ("status", f"{record['status']}"),
        ("peak", f"{record['peak']:,}{share}"),
        ("time", f"{record['time_s']:.1f} s"),
    ]
    for name, value in rows + ([("choice", str(out))] if out is not None else []):
        print(f"{name:8s}{value}")


@contextmanager
def _told(began: float) -> Iterator[Callable[[float, float], None]]:
    """A callable (cost, bound) that keeps a line on a terminal up to date, or does nothing if
    stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda cost, bound: None
        return
    last = 0.0

    def tell(cost: float, bound: float) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last < _EVERY:
            return
        last = now
        known = cost < float("inf") and bound > -float("inf") and cost
        gap = f"{100 * (cost - bound) / abs(cost):.3f} %" if known else "-"
        words = f"{now - began:6.1f} s  cost {_number(cost)}  bound {_number(bound)}  gap {gap}"
        print(f"\r\x1b[K{words}", end="", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) < float("inf") else "-"


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """A context in which Ctrl-C ends the search instead of the process; a second one ends that."""
    pressed: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        if len(pressed) > 1 and callable(before):
            before(number, frame)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
