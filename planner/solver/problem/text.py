"""The text of a small `Problem` for a person to read, after a failed test or before a file is
solved.

Problem -> text: its nodes with the cost and bytes of every strategy, the tables between them,
memory over time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from planner.solver.problem.problem import FORBIDDEN, Choice, Numbers, Problem

__all__ = ["problem_text"]

#: The most nodes, edges or times, and the most strategies of a node, that are shown: nobody reads
#: more.
_ROWS, _STRATEGIES = 40, 12


def problem_text(problem: Problem, choice: Choice | None = None) -> str:
    """The problem as lines, at most 40 nodes, edges and times each. A forbidden entry is `-`. With
    a `choice`, its entries are in brackets, and memory is what it holds; else memory is the least
    and the most that any choice could hold."""
    parts = (
        _head(problem, choice),
        _nodes(problem, choice),
        _edges(problem, choice),
        _memory(problem, choice),
    )
    return "\n".join(line for part in parts for line in part) + "\n"


def _head(problem: Problem, choice: Choice | None) -> Iterator[str]:
    limit = (
        "no limit"
        if problem.limit == float("inf")
        else f"a limit of {_number(problem.limit)} bytes"
    )
    yield (
        f"{len(problem.costs)} nodes, {len(problem.edges)} edges of {problem.num_pairs} pairs, "
        f"{len(problem.usages)} usages over {problem.horizon} times, {limit}"
    )
    if choice is not None:
        fits = "fits" if problem.fits(choice) else "does not fit"
        yield (
            f"the choice costs {_number(problem.cost(choice))}, holds at most "
            f"{_number(problem.peak(choice))} bytes and {fits}"
        )


def _nodes(problem: Problem, choice: Choice | None) -> Iterator[str]:
    yield "nodes: costs"
    for node, costs in enumerate(problem.costs[:_ROWS]):
        taken = None if choice is None else choice[node]
        yield f"  {_name(problem, node)}: {_row(costs, taken)}"
        for usage in problem.usages:
            if usage.node == node:
                spans = ", ".join(
                    f"{_time(problem, a)} to {_time(problem, b)}{f' x {t:g}' * (t != 1)}"
                    for a, b, t in usage.spans
                )
                yield f"      bytes {_row(usage.nbytes, taken)} from {spans}"
    yield from _left(len(problem.costs), "nodes")


def _edges(problem: Problem, choice: Choice | None) -> Iterator[str]:
    if problem.edges:
        yield "edges: a row for each strategy of the first node"
    for edge in problem.edges[:_ROWS]:
        yield f"  {_name(problem, edge.u)} - {_name(problem, edge.v)}"
        for at, row in enumerate(edge.cost[:_STRATEGIES]):
            taken = choice[edge.v] if choice is not None and choice[edge.u] == at else None
            yield f"      {_row(row, taken)}"
        if len(edge.cost) > _STRATEGIES:
            yield f"      ... {len(edge.cost)} rows in all"
    yield from _left(len(problem.edges), "edges")


def _memory(problem: Problem, choice: Choice | None) -> Iterator[str]:
    if not problem.horizon or not (problem.usages or problem.base is not None):
        return
    least, most = _range(problem)
    held = None if choice is None else problem.memory(choice)
    yield "memory: bytes held at each time"
    for at in range(min(problem.horizon, _ROWS)):
        words = (
            f"{_number(least[at])} to {_number(most[at])}" if held is None else _number(held[at])
        )
        worst = most[at] if held is None else held[at]
        yield f"  {_time(problem, at)}: {words}{'  over the limit' * bool(worst > problem.limit)}"
    yield from _left(problem.horizon, "times")


def _range(problem: Problem) -> tuple[Numbers, Numbers]:
    """At every time, the sum of the least bytes of each node, and that of the most."""
    base = np.zeros(problem.horizon) if problem.base is None else problem.base.astype(float)
    least, most = base.copy(), base.copy()
    for usage in problem.usages:
        for start, end, times in usage.spans:
            least[start:end] += usage.nbytes.min() * times
            most[start:end] += usage.nbytes.max() * times
    return least, most


def _name(problem: Problem, node: int) -> str:
    return f"{node} {problem.names[node]}" if problem.names else str(node)


def _time(problem: Problem, at: int) -> str:
    """The name of a time; empty for the end of the last one if only times have names."""
    if not problem.clock:
        return str(at)
    return str(problem.clock[at]) if at < len(problem.clock) else "the end"


def _row(table: Numbers, taken: int | None) -> str:
    cells = [
        f"[{_number(x)}]" if at == taken else _number(x) for at, x in enumerate(table.tolist())
    ]
    more = f" ... {len(cells)} in all" if len(cells) > _STRATEGIES else ""
    return " ".join(cells[:_STRATEGIES]) + more


def _number(value: float) -> str:
    """`-` for a forbidden cost; integers in full, other numbers to four digits."""
    if value >= FORBIDDEN:
        return "-"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"


def _left(count: int, what: str) -> Sequence[str]:
    return [f"  ... {count} {what} in all"] if count > _ROWS else []
