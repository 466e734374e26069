"""The local-polytope integer program of a reduced problem, in HiGHS through arrays.

    x[n,s] in {0,1}   sum_s x[n,s] = 1
    y[e,i,j] >= 0     sum_j y[e,i,j] = x[u,i],  sum_i y[e,i,j] = x[v,j];  a forbidden pair has no y
    each time t that was found over the limit:  sum m_t(s) x(s) <= room(t), in units of the limit

An *elastic* program leaves costs out and minimises z in  sum m_t(s) x(s) <= room(t) + z,  with z in
units of the limit too.

PuLP models the planner's small programs (`ilp`). Here there are up to a million y: one Python
object for each would be too slow.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import highspy
import numpy as np

from planner.solver.problem.problem import Array, Choice, Problem, forbids
from planner.solver.reduce.rows import Rows
from planner.solver.reduce.working import Labels
from planner.solver.relax.quiet import silence_banner

__all__ = ["Outcome", "Polytope", "magnitude"]

#: Costs are scaled so that the largest one that matters is about this: the solver's tolerances are
#: absolute, 1e-7 and less.
_SCALE = 1e4

#: Rows added after each solve of the relaxation; more are seldom binding.
_ROWS = 8

#: The excess, as a share of the limit, that the relaxation may have: its feasibility tolerance.
_LOOSE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`choice` fits (within z), None if none was found; `bound` holds for every choice of the
    program that fits, infinite if there is none; `proved` if the two met."""

    choice: Choice | None
    bound: float
    proved: bool


class Polytope:
    """The program of a problem; memory rows are added as they are needed."""

    def __init__(
        self,
        problem: Problem,
        rows: Rows,
        *,
        elastic: bool = False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        silence_banner()
        self.problem, self.rows, self.stopped, self.elastic = problem, rows, stopped, elastic
        self.added: set[int] = set()
        self.improved: list[Array] = []  # what HiGHS's thread found last
        self.unit = rows.limit if 0 < rows.limit < float("inf") else 1.0
        self.scale = 1.0 if elastic else _SCALE / magnitude(problem)
        self.highs = highspy.Highs()  # type: ignore[no-untyped-call]
        for name, value in (
            ("output_flag", False),
            ("threads", 1),
            ("mip_rel_gap", 0.0),
            ("mip_abs_gap", 1e-6),
            ("random_seed", 0),
            ("mip_feasibility_tolerance", 1e-7),
        ):
            self.highs.setOptionValue(name, value)
        self.highs.HandleUserInterrupt = True
        self.num_states = int(rows.first[-1])
        self.highs.cbMipImprovingSolution += self._on_improved
        self.highs.passModel(self._model())
        if elastic:
            self.highs.addCol(
                1.0, -1.0, highspy.kHighsInf, 0, np.zeros(0, dtype=np.int32), np.zeros(0)
            )

    def _model(self) -> highspy.HighsLp:
        """The model without the memory rows, column by column."""
        first = self.rows.first
        costs = [np.concatenate(self.problem.costs) if self.problem.costs else np.zeros(0)]
        node = np.repeat(np.arange(len(self.problem.costs)), np.diff(first))
        row_of, column_of = [node], [np.arange(self.num_states)]
        values = [np.ones(self.num_states)]
        num_rows, num_columns = len(self.problem.costs), self.num_states
        for edge in self.problem.edges:
            i, j = np.nonzero(~forbids(edge.cost))
            pairs = num_columns + np.arange(len(i))
            for node_, label, size in (
                (edge.u, i, edge.cost.shape[0]),
                (edge.v, j, edge.cost.shape[1]),
            ):
                row_of += [num_rows + label, num_rows + np.arange(size)]
                column_of += [pairs, first[node_] + np.arange(size)]
                values += [np.ones(len(i)), np.full(size, -1.0)]
                num_rows += size
            costs.append(edge.cost[i, j])
            num_columns += len(i)
        return self._lp(num_columns, num_rows, np.concatenate(costs), row_of, column_of, values)

    def _lp(
        self,
        num_columns: int,
        num_rows: int,
        costs: Array,
        row_of: list[Labels],
        column_of: list[Labels],
        values: list[Array],
    ) -> highspy.HighsLp:
        rows = np.concatenate(row_of)
        columns = np.concatenate(column_of)
        entries = np.concatenate(values)
        order = np.argsort(columns, kind="stable")
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = num_columns, num_rows
        lp.col_cost_ = np.where(np.isfinite(costs), costs, 0.0) * self.scale
        lp.col_lower_ = np.zeros(num_columns)
        upper = np.ones(num_columns)
        upper[~np.isfinite(costs)] = 0.0
        upper[self.num_states :] = highspy.kHighsInf
        lp.col_upper_ = upper
        side = np.zeros(num_rows)
        side[: len(self.problem.costs)] = 1.0
        lp.row_lower_ = lp.row_upper_ = side
        lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_ = np.concatenate(
            [[0], np.cumsum(np.bincount(columns, minlength=num_columns))]
        ).astype(np.int32)
        lp.a_matrix_.index_, lp.a_matrix_.value_ = rows[order].astype(np.int32), entries[order]
        return lp

    def add_row(self, at: int) -> None:
        """Adds the row that keeps memory at a time within its room (plus z)."""
        states, nbytes = self.rows.row(at)
        room = self.rows.room[at] / self.unit
        columns, values = states.astype(np.int32), nbytes / self.unit
        if self.elastic:
            columns = np.append(columns, np.int32(self.highs.getNumCol() - 1))
            values = np.append(values, -1.0)
        self.highs.addRow(-highspy.kHighsInf, room, len(columns), columns, values)
        self.added.add(at)

    def _missing(self, held: Array, over: float, tolerance: float = 0.0) -> list[int]:
        """Times that have no row yet and whose room `held` exceeds, worst first; `over` is z."""
        found = self.rows.over(held - over * self.unit, tolerance).tolist()
        return [t for t in found if t not in self.added]

    def relax(self, deadline: float) -> Outcome:
        """Solves the linear relaxation, adding rows until it is within the limit: a bound, and a
        choice if the solution is integral."""
        bound = -float("inf")
        while True:
            status = self._run(deadline)
            if status == highspy.HighsModelStatus.kInfeasible:
                return Outcome(choice=None, bound=float("inf"), proved=True)
            if status != highspy.HighsModelStatus.kOptimal:
                return Outcome(choice=None, bound=bound, proved=False)
            bound = self.highs.getInfo().objective_function_value / self.scale
            values = np.array(self.highs.getSolution().col_value)
            weight, over = values[: self.num_states], float(values[-1]) if self.elastic else 0.0
            missing = self._missing(self.rows.held(weight), over, _LOOSE)
            for at in missing[:_ROWS]:
                self.add_row(at)
            if missing:
                continue
            choice = (
                self._choice(weight)
                if bool((np.abs(weight - np.rint(weight)) < 1e-6).all())
                else None
            )
            if choice is not None and not self._fits(choice, over):
                choice = None
            return Outcome(choice=choice, bound=bound, proved=choice is not None)

    def solve(
        self, deadline: float, *, found: Callable[[Choice], object] = lambda choice: None
    ) -> Outcome:
        """The best choice that fits. The relaxation comes first, for the rows that it adds. `found`
        is called with choices on the way."""
        first = self.relax(deadline)
        if first.proved or self._late(deadline):
            return first
        count, bound = self.num_states, first.bound
        whole = np.full(count, int(highspy.HighsVarType.kInteger), dtype=np.uint8)
        self.highs.changeColsIntegrality(count, np.arange(count, dtype=np.int32), whole)
        while True:
            status = self._run(deadline, found)
            if status == highspy.HighsModelStatus.kInfeasible:
                return Outcome(choice=None, bound=float("inf"), proved=True)
            info, done = self.highs.getInfo(), status == highspy.HighsModelStatus.kOptimal
            bound = (
                max(bound, info.mip_dual_bound / self.scale)
                if np.isfinite(info.mip_dual_bound)
                else bound
            )
            if info.primal_solution_status != 2:  # kSolutionStatusFeasible
                return Outcome(choice=None, bound=bound, proved=False)
            values = np.array(self.highs.getSolution().col_value)
            choice, over = self._choice(values[:count]), float(values[-1]) if self.elastic else 0.0
            if self._fits(choice, over):
                return Outcome(choice=choice, bound=bound, proved=done)
            missing = self._missing(self.rows.held_by(np.array(choice)), over)
            if not missing or not done:
                return Outcome(choice=None, bound=bound, proved=False)
            for at in missing[:_ROWS]:
                self.add_row(at)

    def _late(self, deadline: float) -> bool:
        return self.stopped() or time.perf_counter() >= deadline

    def _fits(self, choice: Choice, over: float) -> bool:
        excess = self.rows.excess(choice) - over * self.unit
        return bool((excess <= (_LOOSE * self.unit if self.elastic else self.rows.slack)).all())

    def _run(
        self, deadline: float, found: Callable[[Choice], object] | None = None
    ) -> highspy.HighsModelStatus:
        """Runs HiGHS until it is done, the time is up, or the user presses Ctrl-C."""
        left = deadline - time.perf_counter()
        if self._late(deadline):
            return highspy.HighsModelStatus.kTimeLimit
        self.highs.setOptionValue("time_limit", self.highs.getRunTime() + left)
        self.highs.startSolve()
        while not self.highs.wait(0.02)[0]:
            if self.stopped():
                self.highs.cancelSolve()  # type: ignore[no-untyped-call]
            if found is not None and self.improved and not self.elastic:
                choice = self._choice(self.improved.pop())
                if self.rows.fits(choice):
                    found(choice)
        return self.highs.getModelStatus()

    def _on_improved(self, event: highspy.highs.HighsCallbackEvent) -> None:
        self.improved = [np.array(event.data_out.mip_solution)[: self.num_states]]

    def _choice(self, weight: Array) -> Choice:
        first = self.rows.first
        return tuple(int(weight[a:b].argmax()) for a, b in itertools.pairwise(first))


def magnitude(problem: Problem) -> float:
    """The magnitude of the costs that distinguish choices: the spread of a table's costs (largest
    less smallest), averaged over all nodes and edges."""
    tables = [*problem.costs, *(edge.cost for edge in problem.edges)]
    spread = sum(float(np.ptp(finite)) for table in tables if len(finite := table[~forbids(table)]))
    return max(spread / max(len(tables), 1), 1e-30)
