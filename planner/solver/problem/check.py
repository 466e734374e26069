"""The checker of a `Solution`: its choice is valid, costs what it says, fits, and is not below its
bound.

A `Problem` checks itself when it is made (`problem.Problem`).
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.solver.problem.problem import Problem
from planner.solver.problem.solution import TOLERANCE, Solution

__all__ = ["solution_faults"]


def solution_faults(problem: Problem, solution: Solution) -> Iterator[str]:
    """The faults of a solution, one line each; every figure is recomputed from the problem's
    tables."""
    if solution.status not in ("optimal", "feasible"):
        return
    choice, sizes = solution.choice, [len(table) for table in problem.costs]
    if len(choice) != len(sizes):
        yield f"the choice has {len(choice)} strategies for {len(sizes)} nodes"
        return
    for node, (taken, size) in enumerate(zip(choice, sizes, strict=True)):
        if not 0 <= taken < size:
            yield f"node {node} takes strategy {taken}, but it has {size}, counted from 0"
            return
    cost = problem.cost(choice)
    if cost == float("inf"):
        yield "the choice takes a strategy or a pair that is forbidden"
    elif abs(cost - solution.objective) > 1e-9 * abs(cost):
        yield f"the choice costs {cost}, the solution says {solution.objective}"
    if problem.limit < float("inf") and not problem.fits(choice):
        yield f"the choice holds {problem.peak(choice)} bytes, the limit is {problem.limit}"
    if solution.bound > solution.objective:
        yield f"the bound of {solution.bound} is above the cost of {solution.objective}"
    if solution.status == "optimal" and solution.gap > TOLERANCE:
        yield f"it is called optimal with a gap of {solution.gap}"
