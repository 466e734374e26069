"""The contest's file format (ASPLOS/EuroSys 2025, intra-operator parallelism), read and checked:
file -> `Problem`.

`problem.nodes.intervals[i]` is `[lo, hi)`, empty if a node holds nothing; `nodes.costs[i][s]`
and `nodes.usages[i][s]` integers; `edges.nodes[e]` is `[u, v]`, `edges.costs[e]` row-major;
`usage_limit` may be missing.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cost_models.errors import BadValue
from planner.solver.problem.problem import FORBIDDEN, Edge, Numbers, Problem, Usage

__all__ = ["parse_contest", "read_contest"]

_KEYS = {"": {"problem"}, "problem": {"name", "nodes", "edges", "usage_limit"}}
_KEYS |= {"problem.nodes": {"intervals", "costs", "usages"}, "problem.edges": {"nodes", "costs"}}
_OPTIONAL = {"name", "usage_limit"}

#: What 64-bit integers hold: sums of costs and of bytes must stay below.
_MOST = 2**63


def read_contest(path: Path) -> Problem:
    """The problem in a file, JSON or gzipped JSON. Raises BadValue if the file is not in the
    contest's format."""
    try:
        raw = path.read_bytes()
        text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        return parse_contest(json.loads(text))
    except OSError as error:
        raise BadValue(f"{path}: {error.strerror or error}") from error
    except EOFError as error:
        raise BadValue(f"{path}: the compressed file ends early") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadValue(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise BadValue(f"{path} is not JSON of this format: nested too deeply") from error
    except BadValue as error:
        raise BadValue(f"{path}: {error}") from error


def parse_contest(record: Any) -> Problem:
    """The problem of a parsed file. Raises BadValue naming the key that is wrong."""
    problem = _section(record, "")["problem"]
    nodes = _section(_section(problem, "problem")["nodes"], "problem.nodes")
    edges = _section(problem["edges"], "problem.edges")
    costs = _tables(nodes["costs"], "nodes.costs")
    usages = _tables(nodes["usages"], "nodes.usages")
    intervals = _pairs(nodes["intervals"], "nodes.intervals")
    if not len(costs) == len(usages) == len(intervals):
        raise BadValue(
            f"nodes has {len(costs)} costs, {len(usages)} usages and {len(intervals)} intervals: "
            "give one of each per node"
        )
    limit = problem.get("usage_limit")
    if limit is not None and (
        not isinstance(limit, int) or isinstance(limit, bool) or not 0 <= limit < _MOST
    ):
        raise BadValue(
            f"usage_limit {limit!r}: give a whole number of bytes from 0 to 2^63, or leave it out"
        )
    clock, spans = _compressed(intervals)
    pairs, tables = _pairs(edges["nodes"], "edges.nodes"), _tables(edges["costs"], "edges.costs")
    if len(pairs) != len(tables):
        raise BadValue(
            f"edges has {len(pairs)} nodes and {len(tables)} costs: give one of each per edge"
        )
    _check_sums(costs, tables, usages)
    for node, (own, held) in enumerate(zip(costs, usages, strict=True)):
        if len(held) != len(own) and spans[node][0] < spans[node][1]:
            raise BadValue(
                f"node {node} has {len(own)} costs and {len(held)} usages: give one of each per "
                "strategy"
            )
    return Problem(
        costs=tuple(costs),
        edges=tuple(_edge(i, pairs[i], tables[i], costs) for i in range(len(pairs))),
        usages=tuple(
            Usage(node=n, nbytes=usages[n], spans=((lo, hi, 1),))
            for n, (lo, hi) in enumerate(spans)
            if lo < hi
        ),
        horizon=max(0, len(clock) - 1),
        limit=float("inf") if limit is None else limit,
        clock=clock,
    )


def _section(found: Any, where: str) -> Mapping[str, Any]:
    """A JSON object with the keys that the format knows at `where`, and no others."""
    known = _KEYS[where]
    name = where or "the file"
    if not isinstance(found, dict):
        raise BadValue(
            f"{name} is a {type(found).__name__}, not an object with the keys {', '.join(sorted(known))}"
        )
    unknown, missing = sorted(set(found) - known), sorted(known - set(found) - _OPTIONAL)
    if unknown:
        raise BadValue(f"unknown key {unknown[0]!r} in {name}: known: {', '.join(sorted(known))}")
    if missing:
        raise BadValue(f"{name} lacks the key {missing[0]!r}")
    return found


def _tables(found: Any, where: str) -> list[Numbers]:
    """Lists of integers as arrays, which are views of one array."""
    if not isinstance(found, list) or not all(isinstance(row, list) for row in found):
        raise BadValue(f"{where} is not a list of lists")
    kinds = set(map(type, itertools.chain.from_iterable(found)))
    if not kinds <= {int}:
        index, bad = next((i, x) for i, row in enumerate(found) for x in row if type(x) is not int)
        raise BadValue(f"{where}[{index}] has {bad!r}: give whole numbers")
    sizes = np.fromiter(map(len, found), dtype=np.int64, count=len(found))
    try:
        flat = np.fromiter(
            itertools.chain.from_iterable(found), dtype=np.int64, count=int(sizes.sum())
        )
    except OverflowError as error:
        index, bad = next(
            (i, x) for i, row in enumerate(found) for x in row if not -_MOST <= x < _MOST
        )
        raise BadValue(f"{where}[{index}] has {bad}: beyond 2^63") from error
    return np.split(flat, np.cumsum(sizes)[:-1]) if len(found) else []


def _pairs(found: Any, where: str) -> Sequence[tuple[int, int]]:
    """Lists of two integers."""
    tables = _tables(found, where)
    bad = next((i for i, pair in enumerate(tables) if len(pair) != 2), None)
    if bad is not None:
        raise BadValue(f"{where}[{bad}] has {len(tables[bad])} numbers, not two")
    return [(int(a), int(b)) for a, b in tables]


def _compressed(
    intervals: Sequence[tuple[int, int]],
) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """The times at which anything starts or ends, and the intervals as indices into those times."""
    ends = np.array(intervals, dtype=np.int64).reshape(-1, 2)
    clock = np.unique(ends[ends[:, 0] < ends[:, 1]])
    lo, hi = np.searchsorted(clock, ends[:, 0]), np.searchsorted(clock, ends[:, 1])
    live = ends[:, 0] < ends[:, 1]
    return tuple(clock.tolist()), list(
        zip(np.where(live, lo, 0).tolist(), np.where(live, hi, 0).tolist(), strict=True)
    )


def _edge(index: int, pair: tuple[int, int], table: Numbers, costs: Sequence[Numbers]) -> Edge:
    u, v = pair
    if not (0 <= u < len(costs) and 0 <= v < len(costs)):
        raise BadValue(
            f"edge {index} joins nodes {u} and {v}, but there are {len(costs)}, counted from 0"
        )
    if table.size != len(costs[u]) * len(costs[v]):
        raise BadValue(
            f"edge {index} has {table.size} costs, its nodes {u} and {v} have {len(costs[u])} x "
            f"{len(costs[v])} strategies"
        )
    return Edge(u=u, v=v, cost=table.reshape(len(costs[u]), len(costs[v])))


def _check_sums(
    costs: Sequence[Numbers], tables: Sequence[Numbers], usages: Sequence[Numbers]
) -> None:
    """Raises BadValue unless the largest cost and memory that a choice could have are below
    2^63."""
    dearest = _sum_of_largest([*costs, *tables], FORBIDDEN)
    fullest = _sum_of_largest(usages, np.inf)
    if dearest >= _MOST:
        raise BadValue(
            f"costs may add up to {dearest:.3g}, beyond 2^63: give them in a larger unit"
        )
    if fullest >= _MOST:
        raise BadValue(
            f"usages may add up to {fullest:.3g}, beyond 2^63: give them in a larger unit"
        )


def _sum_of_largest(tables: Sequence[Numbers], left_out: float) -> float:
    """The sum, over tables, of the largest absolute value below `left_out`."""
    filled = [table for table in tables if table.size]
    if not filled:
        return 0.0
    flat = np.abs(np.concatenate(filled).astype(np.float64))
    flat[flat >= left_out] = 0.0
    starts = np.cumsum([0, *(table.size for table in filled[:-1])])
    return float(np.maximum.reduceat(flat, starts).sum())
