"""A problem or a solution that is broken in one way is found out by one line; and a small
problem can be read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cost_models.errors import BadValue
from planner.solver.exact.ilp import solve
from planner.solver.problem.check import solution_faults
from planner.solver.problem.problem import Edge, Problem, Usage
from planner.solver.problem.solution import Solution
from planner.solver.problem.text import problem_text

COSTS = (np.array([1.0, 2.0]), np.array([4.0, 3.0, np.inf]))
PAIRS = Edge(u=0, v=1, cost=np.array([[0.0, 5.0, 0.0], [0.0, np.inf, 0.0]]))
HELD = Usage(node=1, nbytes=np.array([8.0, 4.0, 0.0]), spans=((0, 2, 1.0), (3, 4, 2.0)))


def problem(**changed: Any) -> Problem:
    """Two nodes, an edge, memory over four times; 5 for (0, 0), else dearer."""
    given: dict[str, Any] = {
        "costs": COSTS,
        "edges": (PAIRS,),
        "usages": (HELD,),
        "horizon": 4,
        "limit": 20.0,
        "base": np.array([1.0, 2.0, 0.0, 0.0]),
        "names": ("embedding", "head"),
        "clock": (0, 3, 7, 9),
    }
    return Problem(**{**given, **changed})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"costs": (COSTS[0], np.array([np.nan, 1.0, 1.0]))},
            "costs of node 1: nan is not a number",
        ),
        ({"costs": (COSTS[0], -np.inf * np.ones(3))}, "costs of node 1: -inf is below -10^17"),
        (
            {"costs": (COSTS[0], np.ones((3, 1)))},
            "node 1 has costs of shape (3, 1): give one per strategy",
        ),
        (
            {"costs": (np.array([]), COSTS[1])},
            "node 0 has no strategy to choose: give every node at least one",
        ),
        (
            {"edges": (replace(PAIRS, v=2),)},
            "edge 0 joins nodes 0 and 2, but there are 2, counted from 0",
        ),
        (
            {"edges": (replace(PAIRS, cost=np.ones((2, 2))),)},
            "edge 0 has a table of shape (2, 2), its nodes 0 and 1 have 2 and 3",
        ),
        (
            {"edges": (replace(PAIRS, cost=np.full((2, 3), np.nan)),)},
            "costs of edge 0: nan is not a number",
        ),
        (
            {"usages": (replace(HELD, node=2),)},
            "a usage of node 2, but there are 2, counted from 0",
        ),
        ({"usages": (replace(HELD, nbytes=np.ones(2)),)}, "node 1 has 3 strategies, but 2 usages"),
        ({"usages": (replace(HELD, nbytes=-np.ones(3)),)}, "usages of node 1: -1.0 is below 0"),
        (
            {"usages": (replace(HELD, spans=((2, 5, 1.0),)),)},
            "node 1 holds memory over ((2, 5, 1.0),), outside of 0 to 4",
        ),
        (
            {"usages": (replace(HELD, spans=((2, 1, 1.0),)),)},
            "node 1 holds memory over ((2, 1, 1.0),), outside of 0 to 4",
        ),
        (
            {"usages": (replace(HELD, spans=((1, 2, -1.0),)),)},
            "node 1 holds memory over ((1, 2, -1.0),), outside of 0 to 4",
        ),
        (
            {"usages": (replace(HELD, spans=((1, 2, np.nan),)),)},
            "node 1 holds memory over ((1, 2, nan),), outside of 0 to 4",
        ),
        ({"limit": -1.0}, "a limit of -1.0 bytes: give a number of at least 0"),
        (
            {"horizon": -1, "usages": (), "base": None, "clock": ()},
            "a horizon of -1 times: give a number of at least 0",
        ),
        ({"base": np.ones(3)}, "base has shape (3,), there are 4 times: give bytes for each"),
        ({"base": np.array([0.0, 1.0, -1.0, 0.0])}, "base of time 0: -1.0 is below 0"),
        ({"clock": (1, 2)}, "clock names 2 times, there are 4"),
        ({"names": ("one",)}, "1 names for 2 nodes"),
    ],
)
def test_a_broken_problem_is_one_line(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(BadValue) as error:
        problem(**changed)
    assert words in str(error.value) and "\n" not in str(error.value)


def solution(**changed: Any) -> Solution:
    given: dict[str, Any] = {
        "status": "optimal",
        "choice": (0, 0),
        "objective": 5.0,
        "bound": 5.0,
        "time_s": 0.0,
        "num_variables": 0,
    }
    return Solution(**{**given, **changed})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"choice": (0,)}, "the choice has 1 strategies for 2 nodes"),
        ({"choice": (0, 3)}, "node 1 takes strategy 3, but it has 3, counted from 0"),
        ({"choice": (0, -1)}, "node 1 takes strategy -1, but it has 3, counted from 0"),
        ({"choice": (1, 1)}, "the choice takes a strategy or a pair that is forbidden"),
        ({"choice": (1, 0)}, "the choice costs 6.0, the solution says 5.0"),
        ({"bound": 6.0}, "the bound of 6.0 is above the cost of 5.0"),
        ({"bound": 4.0}, "it is called optimal with a gap of 0.2"),
    ],
)
def test_a_broken_solution_is_one_line(changed: dict[str, Any], words: str) -> None:
    assert list(solution_faults(problem(), solution(**changed))) == [words]


def test_a_solution_fits() -> None:
    tight = problem(limit=15.0)
    assert list(solution_faults(tight, solution())) == [
        "the choice holds 16.0 bytes, the limit is 15.0"
    ]
    # The solution is the leanest choice, and says so.
    assert list(solution_faults(tight, solution(status="infeasible"))) == []


def test_what_the_solver_finds_has_no_faults() -> None:
    assert solve(problem()).choice == (0, 0)
    assert list(solution_faults(problem(), solve(problem()))) == []
    assert list(solution_faults(problem(limit=15.0), solve(problem(limit=15.0)))) == []


TEXT = """\
2 nodes, 1 edges of 6 pairs, 1 usages over 4 times, a limit of 20 bytes
the choice costs 5, holds at most 16 bytes and fits
nodes: costs
  0 embedding: [1] 2
  1 head: [4] 3 -
      bytes [8] 4 0 from 0 to 7, 9 to the end x 2
edges: a row for each strategy of the first node
  0 embedding - 1 head
      [0] 5 0
      0 - 0
memory: bytes held at each time
  0: 9
  3: 10
  7: 0
  9: 16
"""


def test_a_problem_is_read_with_its_choice() -> None:
    assert problem_text(problem(), (0, 0)) == TEXT


def test_a_problem_is_read_without_a_choice() -> None:
    """Memory is then from the least to the most, and what may be over the limit says so."""
    text = problem_text(problem(limit=12.0, names=(), clock=()))
    assert "  1: 4 3 -\n      bytes 8 4 0 from 0 to 2, 3 to 4 x 2\n" in text
    assert text.endswith("  0: 1 to 9\n  1: 2 to 10\n  2: 0 to 0\n  3: 0 to 16  over the limit\n")


def test_of_a_large_problem_the_beginning_is_shown() -> None:
    large = Problem(costs=tuple(np.arange(20.0) for _ in range(50)))
    lines = problem_text(large).splitlines()
    assert lines[0] == "50 nodes, 0 edges of 0 pairs, 0 usages over 0 times, no limit"
    assert lines[-1] == "  ... 50 nodes in all" and len(lines) == 43
    assert lines[2] == "  0: 0 1 2 3 4 5 6 7 8 9 10 11 ... 20 in all"
