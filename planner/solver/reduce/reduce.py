"""Lossless reduction: a problem -> a smaller one with the same least cost, and the way back.

The steps of `steps` and `timepoints` run over the nodes that changed until nothing changes. Each
can be left out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from planner.solver.problem.problem import Problem
from planner.solver.reduce.steps import NODE_STEPS, room
from planner.solver.reduce.timepoints import times
from planner.solver.reduce.working import Contradiction, Labels, Reduced, Working

__all__ = ["STEPS", "Contradiction", "Reduced", "reduce"]

#: The names of all steps.
STEPS = (*NODE_STEPS, "room", "times")

#: Times and room are reduced again after each round; usually two rounds suffice.
_ROUNDS = 10


def reduce(
    problem: Problem, steps: Collection[str] = STEPS, kept: Sequence[Labels] | None = None
) -> Reduced:
    """The reduced problem, with only the strategies `kept` (None: all). Raises Contradiction if a
    step shows that no possible choice fits."""
    assert set(steps) <= set(STEPS), set(steps) - set(STEPS)
    work = Working(problem)
    for node, labels in enumerate(kept or ()):
        if len(labels) < len(problem.costs[node]):
            work.keep(node, labels)
    for _ in range(_ROUNDS):
        if "times" in steps:
            times(work)
        if "room" in steps:
            room(work)
        if not work.touched:
            break
        _settle(work, [name for name in NODE_STEPS if name in steps])
    return work.reduced()


def _settle(work: Working, steps: Collection[str]) -> None:
    """Runs the steps for single nodes until nothing changes: the cheap ones first, a dearer one
    only when the cheaper ones change nothing."""
    todo = {name: set(work.touched) for name in steps}
    work.touched.clear()
    while True:
        name = next((name for name in steps if todo[name]), None)
        if name is None:
            return
        nodes, todo[name] = sorted(todo[name]), set()
        for node in nodes:
            if work.alive[node]:
                NODE_STEPS[name](work, node)
        changed = {node for node in work.touched if work.alive[node]}
        work.touched.clear()
        for other in steps:
            todo[other] |= changed
