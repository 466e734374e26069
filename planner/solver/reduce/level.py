"""A level of a search: a reduced problem and the way from it to the whole one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from planner.solver.problem.problem import Array, Choice, Problem
from planner.solver.reduce.reduce import STEPS, Reduced, reduce
from planner.solver.reduce.rows import Rows
from planner.solver.reduce.working import Labels

__all__ = ["Level", "sum_of_minima"]


@dataclass(frozen=True, slots=True)
class Level:
    """`offset` is the whole problem's cost less the level's; `clock` gives the level's times as
    times of the whole problem."""

    problem: Problem
    rows: Rows
    offset: float
    chain: tuple[Reduced, ...]
    clock: Labels

    @staticmethod
    def of(problem: Problem, steps: Collection[str] = STEPS) -> Level:
        """The problem, reduced by `steps`. Raises Contradiction if no possible choice fits."""
        reduced = reduce(problem, steps)
        return Level(
            reduced.problem, Rows(reduced.problem), reduced.offset, (reduced,), reduced.clock
        )

    def without(self, kept: Sequence[Labels], steps: Collection[str] = STEPS) -> Level:
        """The level with only the strategies `kept`, reduced again."""
        reduced = reduce(self.problem, steps, kept=kept)
        chain, clock = (*self.chain, reduced), self.clock[reduced.clock]
        return Level(
            reduced.problem, Rows(reduced.problem), self.offset + reduced.offset, chain, clock
        )

    def restore(self, choice: Choice) -> Choice:
        for reduced in reversed(self.chain):
            choice = reduced.restore(choice)
        return choice

    def project(self, choice: Choice) -> Labels:
        for reduced in self.chain:
            choice = reduced.project(choice)
        return np.array(choice, dtype=np.int64)

    @property
    def num_pairs(self) -> int:
        return self.problem.num_pairs

    @property
    def num_states(self) -> int:
        return int(self.rows.first[-1])

    def prices(self, known: dict[int, float]) -> Array | None:
        """Prices by times of the whole problem, as an array over this level's times; None if there
        are none."""
        if not known or not len(self.clock):
            return None
        out = np.zeros(len(self.clock))
        for at, price in known.items():
            out[min(int(np.searchsorted(self.clock, at)), len(self.clock) - 1)] += price
        return out


def sum_of_minima(problem: Problem) -> float:
    """A quick bound: every node and edge of a reduced problem at its cheapest."""
    return float(sum(c.min() for c in problem.costs) + sum(e.cost.min() for e in problem.edges))
