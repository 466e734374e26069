"""The planner's integer program, in PuLP on HiGHS.

    x[n,i] in {0,1}   node n chooses i            sum_i x[n,i] = 1          (`_choices`)
    y[e,i,j] >= 0     edge e sees the pair i, j   sum_j y[e,i,j] = x[u,i]   (`_pairs`)
                                                  sum_i y[e,i,j] = x[v,j]
    for each time t that was found over the limit:
                      sum m_n[i] x[n,i] <= room                             (`add_memory_row`)
    minimise          sum c_n[i] x[n,i] + sum C_e[i,j] y[e,i,j]

The pairs make the local polytope, whose LP is almost always integral. Rows of memory are added
lazily.
Choices and pairs that a bound rules out have no variable.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pulp

from planner.solver.problem.problem import Array, Choice, Problem
from planner.solver.reduce.working import Labels
from planner.solver.relax.bound import Reparametrised
from planner.solver.relax.quiet import silence_banner

__all__ = ["Found", "Model", "Start"]

Terms = dict[pulp.LpVariable, float]
_Variables = dict[tuple[int, ...], pulp.LpVariable]

#: Costs are scaled so that the bound is about this: the solver's absolute tolerances (1e-6 and
#: less) are then 1e-9 of it.
_SCALE = 1e3

#: HiGHS's tolerances if its defaults (1e-6) allow a choice further over the limit than we do.
_STRICT = {"mip_feasibility_tolerance": 1e-10, "primal_feasibility_tolerance": 1e-10}


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What is known before the integer program: a bound, the moved costs (with `prices` on
    memory), and a choice that fits."""

    moved: Reparametrised
    prices: Mapping[int, float]
    bound: float
    choice: Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A choice of the model that fits, and a lower bound on all that do."""

    choice: Choice
    bound: float


class Model:
    """The PuLP model of all choices and pairs that no bound rules out. Its objective is the moved
    costs above their minima, less what the prices added: the true objective up to a constant, and
    better scaled."""

    def __init__(self, problem: Problem, start: Start, slack: float) -> None:
        silence_banner()
        self.problem, self.start = problem, start
        self.exhausted = False  # whether it was proved that no (further) choice fits
        self.rows: dict[int, float] = {}  # by time: how many bytes the row is below the limit
        self.tolerances: Mapping[str, float] = {}
        self.kept: list[Labels] = [
            np.flatnonzero(np.isfinite(n) & (n - n.min() <= slack)) for n in start.moved.nodes
        ]
        unit = max(abs(start.bound), slack if np.isfinite(slack) else _largest(start.moved))
        self.scale = _SCALE / (unit or 1.0)
        self.model = pulp.LpProblem("strategies", pulp.LpMinimize)
        self.x: list[_Variables] = []
        self.y: list[_Variables] = []
        self.objective: Terms = {}
        self._choices()
        for index in range(len(problem.edges)):
            self._pairs(index, slack)
        for at, rate in start.prices.items():
            for variable, nbytes in self._memory(at).items():
                self.objective[variable] = self.objective.get(variable, 0.0) - rate * nbytes
        self.model.setObjective(
            pulp.LpAffineExpression([(v, c * self.scale) for v, c in self.objective.items() if c])
        )

    @property
    def num_variables(self) -> int:
        return sum(map(len, self.x)) + sum(map(len, self.y))

    def _choices(self) -> None:
        for node, (labels, costs) in enumerate(zip(self.kept, self.start.moved.nodes, strict=True)):
            low = float(costs.min())
            variables: _Variables = {
                (int(i),): self.model.add_variable(f"x_{node}_{i}", cat="Binary") for i in labels
            }
            self.x.append(variables)
            self.objective |= {v: float(costs[i]) - low for i, v in variables.items()}
            self.model += pulp.LpAffineExpression([(v, 1) for v in variables.values()]) == 1

    def _pairs(self, index: int, slack: float) -> None:
        edge, costs = self.problem.edges[index], self.start.moved.edges[index]
        above = costs - costs.min()
        part = above[np.ix_(self.kept[edge.u], self.kept[edge.v])]
        wanted = np.isfinite(part) & (part <= slack)
        if bool(wanted.all()) and float(part.max()) <= 1e-12 * abs(self.start.bound):
            self.y.append({})
            return
        pairs: _Variables = {
            (int(self.kept[edge.u][i]), int(self.kept[edge.v][j])): self.model.add_variable(
                f"y_{index}_{i}_{j}", 0, 1
            )
            for i, j in np.argwhere(wanted)
        }
        self.y.append(pairs)
        self.objective |= {v: float(above[key]) for key, v in pairs.items()}
        self._marginals(pairs, edge.u, 0)
        self._marginals(pairs, edge.v, 1)

    def _marginals(
        self, pairs: dict[tuple[int, ...], pulp.LpVariable], node: int, side: int
    ) -> None:
        """Adds sum of y over the other side = x, for every strategy of `node`."""
        rows: dict[int, list[tuple[pulp.LpVariable, int]]] = {
            label: [(x, -1)] for (label,), x in self.x[node].items()
        }
        for key, y in pairs.items():
            rows[key[side]].append((y, 1))
        for row in rows.values():
            self.model += pulp.LpAffineExpression(row) == 0

    def _memory(self, at: int) -> Terms:
        """Bytes held at time `at`, as terms of the model."""
        terms: Terms = {}
        for usage in self.problem.usages:
            times = usage.times(at)
            if times:
                for (label,), variable in self.x[usage.node].items():
                    terms[variable] = terms.get(variable, 0.0) + times * float(usage.nbytes[label])
        return terms

    def add_memory_row(self, at: int, less: float = 0.0) -> None:
        """Adds the row that keeps memory at time `at` at least `less` bytes below the limit."""
        terms = [
            (v, nbytes / self.problem.limit) for v, nbytes in self._memory(at).items() if nbytes
        ]
        self.model += (
            pulp.LpAffineExpression(terms) <= (self.problem.room(at) - less) / self.problem.limit
        )
        self.rows[at] = less

    def best_fitting(self, time_limit: float, near: float = 0.0) -> Found | None:
        """The best choice of the model that fits at every time, or one that costs at most `near` more;
        rows are added until none is violated. None if there is none, or none was found in time. If
        HiGHS's tolerances let a choice break a row, they are made strict; if that does not suffice,
        the row is tightened, and the bound stays as it was."""
        deadline, bound = time.perf_counter() + time_limit, float("-inf")
        for at in self.start.prices:
            self.add_memory_row(at)
        while True:
            found = self._solve(max(1.0, deadline - time.perf_counter()), near)
            tightened = any(self.rows.values())
            self.exhausted = self.exhausted and not tightened
            if found is None or self.problem.limit == float("inf"):
                return found
            bound = bound if tightened else found.bound
            memory = self.problem.memory(found.choice)
            over = np.flatnonzero(memory > self.problem.limit * (1 + 1e-9))
            if not len(over):
                return replace(found, bound=bound)
            if time.perf_counter() > deadline:
                return None
            for at in _peaks(memory, over).tolist():
                if at not in self.rows:
                    self.add_memory_row(at)
                elif self.tolerances:
                    self.add_memory_row(
                        at, self.rows[at] + 2 * float(memory[at] - self.problem.limit)
                    )
                else:
                    self.tolerances = _STRICT
                    break

    def _solve(self, time_limit: float, near: float) -> Found | None:
        options = {"timeLimit": time_limit, "gapRel": 1e-9, **self.tolerances}
        if near > 0.0:
            options["gapAbs"] = near * self.scale
        self.model.solve(pulp.HiGHS(msg=False, **options))
        info = self.model.solverModel.getInfo()
        if info.primal_solution_status != 2:  # kSolutionStatusFeasible
            self.exhausted = "nfeasible" in self.model.solverModel.modelStatusToString(
                self.model.solverModel.getModelStatus()
            )
            return None
        choice = tuple(max(x, key=lambda i: float(x[i].varValue))[0] for x in self.x)
        constant = self.start.moved.bound
        return Found(choice=choice, bound=constant + float(info.mip_dual_bound) / self.scale)


def _largest(moved: Reparametrised) -> float:
    """The largest possible cost."""
    return max(
        float(np.abs(table[np.isfinite(table)]).max(initial=0.0))
        for table in (*moved.nodes, *moved.edges)
    )


def _peaks(memory: Array, over: Labels) -> Labels:
    """The few times to add rows for first: that of the highest peak, and the first, middle and
    last of `over`."""
    highest = over[np.argsort(memory[over])[-3:]]
    return np.unique(np.concatenate([highest, over[[0, len(over) // 2, -1]]]))
