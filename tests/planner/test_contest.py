"""The contest's format: what is read, and what each kind of damage is told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from cost_models.errors import BadValue
from planner.solver.problem.contest import parse_contest, read_contest


def record(**changes: Any) -> dict[str, Any]:
    """Two nodes, an edge, memory over time; keys replaced by their path with _ for a dot."""
    nodes = {
        "intervals": [[0, 10], [5, 20]],
        "costs": [[1, 2], [3, 4, 5]],
        "usages": [[8, 2], [4, 3, 0]],
    }
    edges = {"nodes": [[0, 1]], "costs": [[0, 1, 2, 3, 4, 10**18]]}
    problem: dict[str, Any] = {"name": "two", "nodes": nodes, "edges": edges, "usage_limit": 9}
    for path, value in changes.items():
        section, _, key = path.partition("_")
        (problem[section] if section in ("nodes", "edges") else problem)[
            key if section in ("nodes", "edges") else path
        ] = value
    return {"problem": problem}


def test_what_is_read() -> None:
    problem = parse_contest(record())
    assert problem.limit == 9 and problem.clock == (0, 5, 10, 20)
    assert problem.cost((0, 2)) == 1 + 5 + 2 and isinstance(problem.cost((0, 2)), int)
    assert problem.cost((1, 2)) == float("inf")
    assert problem.memory((0, 0)).tolist() == [8, 12, 4]
    assert problem.peak((0, 0)) == 12 and not problem.fits((0, 0)) and problem.fits((1, 0))


def test_without_a_limit_everything_fits() -> None:
    without = record()
    del without["problem"]["usage_limit"]
    assert parse_contest(without).fits((0, 0))


def test_sums_are_exact_beyond_floats() -> None:
    big = 2**53
    problem = parse_contest(
        record(nodes_costs=[[big + 1, 0], [1, 4, 5]], edges_costs=[[1, 0, 0, 0, 0, 0]])
    )
    assert problem.cost((0, 0)) == big + 3


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "the file is a list, not an object with the keys problem"),
        ({"problem": {}}, "problem lacks the key 'edges'"),
        ({"problem": {}, "more": 1}, "unknown key 'more' in the file"),
        (record(nodez=1), "unknown key 'nodez' in problem: known: edges, name, nodes, usage_limit"),
        (record(nodes_cost=[]), "unknown key 'cost' in problem.nodes"),
        (
            record(nodes_costs=[[1, 2], []], edges_costs=[[]], nodes_usages=[[8, 2], []]),
            "node 1 has no strategy",
        ),
        (record(nodes_costs=[[1, 2], [3, 4]]), "node 1 has 2 costs and 3 usages"),
        (record(nodes_costs=[[1, 2]]), "nodes has 1 costs, 2 usages and 2 intervals"),
        (
            record(edges_costs=[[0, 1]]),
            "edge 0 has 2 costs, its nodes 0 and 1 have 2 x 3 strategies",
        ),
        (record(edges_costs=[]), "edges has 1 nodes and 0 costs"),
        (record(edges_nodes=[[0, 2]]), "edge 0 joins nodes 0 and 2, but there are 2"),
        (record(edges_nodes=[[0]]), r"edges.nodes\[0\] has 1 numbers, not two"),
        (
            record(nodes_costs=[[1, float("nan")], [3, 4, 5]]),
            r"nodes.costs\[0\] has nan: give whole numbers",
        ),
        (
            record(nodes_costs=[[1, True], [3, 4, 5]]),
            r"nodes.costs\[0\] has True: give whole numbers",
        ),
        (
            record(nodes_costs=[[1, 2**63], [3, 4, 5]]),
            r"nodes.costs\[0\] has 9223372036854775808: beyond 2\^63",
        ),
        (
            record(nodes_costs=[[9 * 10**16] * 200, [3, 4, 5]]),
            "node 0 has 200 costs and 2 usages|edge 0 has 6 costs",
        ),
        (record(nodes_usages=[[8, -2], [4, 3, 0]]), "usages of node 0: -2 is below 0"),
        (
            record(nodes_usages=[[2**62, 2], [2**62, 3, 0]]),
            r"usages may add up to 9.22e\+18, beyond 2\^63",
        ),
        (record(nodes_usages=3), "nodes.usages is not a list of lists"),
        (record(usage_limit=-1), "usage_limit -1: give a whole number of bytes"),
        (record(usage_limit=1.5), "usage_limit 1.5: give a whole number of bytes"),
    ],
)
def test_each_mistake_is_told(found: Any, message: str) -> None:
    with pytest.raises(BadValue, match=message):
        parse_contest(found)


def test_costs_that_add_up_too_far() -> None:
    many = record(
        nodes_intervals=[[0, 1]] * 103, nodes_costs=[[9 * 10**16]] * 103, nodes_usages=[[1]] * 103
    )
    many["problem"]["edges"] = {"nodes": [], "costs": []}
    with pytest.raises(BadValue, match=r"costs may add up to 9.27e\+18, beyond 2\^63"):
        parse_contest(many)


def test_files(tmp_path: Path) -> None:
    plain, packed, broken = tmp_path / "a.json", tmp_path / "a.json.gz", tmp_path / "b.json.gz"
    text = json.dumps(record())
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    assert read_contest(plain).clock == read_contest(packed).clock == (0, 5, 10, 20)
    broken.write_bytes(gzip.compress(text.encode())[:-20])
    for path, message in (
        (tmp_path / "none.json", "No such file"),
        (tmp_path, "Is a directory"),
        (broken, "ends early"),
    ):
        with pytest.raises(BadValue, match=message):
            read_contest(path)
    for content, message in (
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "nested too deeply|is not JSON"),
    ):
        plain.write_bytes(content)
        with pytest.raises(BadValue, match=message):
            read_contest(plain)
    broken.write_bytes(b"\x1f\x8b" + b"junk")
    with pytest.raises(BadValue):
        read_contest(broken)


def test_far_apart_times_take_no_memory() -> None:
    problem = parse_contest(record(nodes_intervals=[[0, 10**15], [10**14, 10**16]]))
    assert problem.horizon == 3 and problem.clock == (0, 10**14, 10**15, 10**16)
