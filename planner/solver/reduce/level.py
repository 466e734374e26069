"""A level of a search: a reduced problem, the way from it to the whole one, and what is known
about its prices."""

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
    """`offset` is what the whole problem costs beside this one; `clock` the level's times in the
    whole problem's."""

    problem: Problem
    rows: Rows
    offset: float
    chain: tuple[Reduced, ...]
    clock: Labels

    @staticmethod
    def of(problem: Problem, steps: Collection[str] = STEPS) -> Level:
        """The problem, reduced by `steps`. Raises Contradiction where no choice is possible and
        fits."""
        reduced = reduce(problem, steps)
        return Level(
            reduced.problem, Rows(reduced.problem), reduced.offset, (reduced,), reduced.clock
        )

    def without(self, kept: Sequence[Labels], steps: Collection[str] = STEPS) -> Level:
        """The level whose nodes are left the strategies `kept`, reduced again."""
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
        """Prices by the whole problem's times as prices of this level's times; None where there
        are none."""
        if not known or not len(self.clock):
            return None
        out = np.zeros(len(self.clock))
        for at, price in known.items():
            out[min(int(np.searchsorted(self.clock, at)), len(self.clock) - 1)] += price
        return out


def sum_of_minima(problem: Problem) -> float:
    """A bound at once: every node and edge of a reduced problem at its cheapest."""
    return float(sum(c.min() for c in problem.costs) + sum(e.cost.min() for e in problem.edges))
