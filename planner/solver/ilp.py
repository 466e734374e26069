"""The integer program, in PuLP on HiGHS.

    x[n,i] in {0,1}   node n chooses i            sum_i x[n,i] = 1                       (`_choices`)
    y[e,i,j] >= 0     edge e sees the pair i, j   sum_j y[e,i,j] = x[u,i]                (`_pairs`: the local polytope,
                                                  sum_i y[e,i,j] = x[v,j]                 whose LP is almost always integral)
    for each time t that was found over the limit:
                      sum m_n[i] x[n,i] + sum M_e[i,j] y[e,i,j] <= limit                 (`_memory_row`, added lazily)
    minimise          sum c_n[i] x[n,i] + sum C_e[i,j] y[e,i,j]

Before PuLP sees it, message passing gives a bound L and rules out every choice and pair that no solution of cost <= L + slack
can contain. If the reduced program's optimum is within L + slack, it is the optimum of the whole problem: else the slack grows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pulp

from planner.solver.bound import Reparametrised, decode, reparametrise
from planner.solver.problem import Array, Problem

__all__ = ["Solution", "solve"]

#: Costs are scaled so that the bound is about this, where the solver's absolute tolerances (1e-6 and less) mean 1e-9 of it.
_SCALE = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """`status` is `optimal` (bound and objective meet), `feasible` (a time limit came first) or `infeasible` (no choice fits the
    limit: `choice` is then the one with the least overflow found). `gap` is (objective - bound) / objective."""

    status: str
    choice: tuple[int, ...]
    objective: float
    bound: float
    time_s: float
    num_variables: int
    overflow: float = 0.0

    @property
    def gap(self) -> float:
        return 0.0 if self.objective <= self.bound else (self.objective - self.bound) / max(abs(self.objective), 1e-30)


def solve(problem: Problem, *, time_limit: float = 60.0) -> Solution:
    """The best choice, its proof, and what the proof rests on."""
    started = time.perf_counter()
    moved = reparametrise(problem)
    best = decode(problem, moved)
    upper = problem.cost(best) if _fits(problem, best) else float("inf")
    slack = max(min(upper - moved.bound, 0.02 * abs(moved.bound)), 1e-9 * abs(moved.bound)) * (1 + 1e-9)
    variables = 0
    while True:
        left = time_limit - (time.perf_counter() - started)
        found = _reduced(problem, moved, slack, max(left, 1.0))
        variables = max(variables, found.num_variables)
        within = found.choice is not None and found.objective <= moved.bound + slack * (1 + 1e-9)
        exhausted = found.complete or left <= 0
        if within or exhausted:
            return _conclude(problem, moved, found, best, upper, slack, variables, time.perf_counter() - started)
        slack *= 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    choice: tuple[int, ...] | None
    objective: float
    bound: float
    num_variables: int
    complete: bool  # nothing had been ruled out


def _conclude(
    problem: Problem, moved: Reparametrised, found: _Found, best: tuple[int, ...], upper: float, slack: float,
    variables: int, elapsed: float,
) -> Solution:  # fmt: skip
    if found.choice is None and upper == float("inf"):
        return _least_overflow(problem, best, variables, elapsed)
    choice, objective = (best, upper) if found.choice is None or upper < found.objective else (found.choice, found.objective)
    bound = min(objective, found.bound, moved.bound + slack if not found.complete else float("inf"))
    bound = max(bound, min(moved.bound, objective))
    status = "optimal" if objective - bound <= 1e-6 * abs(objective) else "feasible"
    return Solution(
        status=status, choice=choice, objective=objective, bound=bound, time_s=elapsed, num_variables=variables
    )  # fmt: skip


def _fits(problem: Problem, choice: tuple[int, ...]) -> bool:
    return problem.limit == float("inf") or bool((problem.memory(choice) <= problem.limit).all())


# ------------------------------------------------------------------------------------------------- the reduced program


def _reduced(problem: Problem, moved: Reparametrised, slack: float, time_limit: float) -> _Found:
    """The program without what no solution within `slack` of the bound can contain, memory rows added until none is violated."""
    kept = [np.flatnonzero(n - n.min() <= slack) for n in moved.nodes]
    complete = all(len(k) == np.isfinite(c).sum() for k, c in zip(kept, problem.costs, strict=True))
    model = _Model(problem, moved, kept, slack)
    complete = complete and model.complete
    started = time.perf_counter()
    while True:
        answer = model.solve(max(1.0, time_limit - (time.perf_counter() - started)))
        if answer is None:
            return _Found(
                choice=None, objective=float("inf"), bound=float("inf"), num_variables=model.num_variables, complete=complete
            )
        choice, bound = answer
        memory = problem.memory(choice) if problem.limit < float("inf") else np.zeros(1)
        over = np.flatnonzero(memory > problem.limit * (1 + 1e-9))
        if not len(over):
            return _Found(
                choice=choice, objective=problem.cost(choice), bound=bound, num_variables=model.num_variables, complete=complete
            )
        for at in _peaks(memory, over):
            model.add_memory_row(int(at))


def _peaks(memory: Array, over: Array) -> Array:
    """The few times to forbid first: the highest, and the first, middle and last that are too high."""
    highest = over[np.argsort(memory[over])[-3:]]
    return np.unique(np.concatenate([highest, over[[0, len(over) // 2, -1]]]))


class _Model:
    """The PuLP model of what is kept. Its costs are the reparametrised ones (same objective less a constant, better scaled)."""

    def __init__(self, problem: Problem, moved: Reparametrised, kept: list[Array], slack: float) -> None:
        self.problem, self.kept, self.bound = problem, kept, moved.bound
        self.scale = _SCALE / max(abs(moved.bound), 1e-30)
        self.model = pulp.LpProblem("strategies", pulp.LpMinimize)
        self.x: list[dict[int, pulp.LpVariable]] = []
        self.y: list[dict[tuple[int, int], pulp.LpVariable]] = []
        self.objective: list[tuple[pulp.LpVariable, float]] = []
        self.offset = 0.0
        self.complete = True
        self._choices(moved)
        self._pairs(moved, slack)
        self.model.setObjective(pulp.LpAffineExpression([(v, c * self.scale) for v, c in self.objective if c]))

    @property
    def num_variables(self) -> int:
        return sum(map(len, self.x)) + sum(map(len, self.y))

    def _choices(self, moved: Reparametrised) -> None:
        for node, (labels, costs) in enumerate(zip(self.kept, moved.nodes, strict=True)):
            low = float(costs.min())
            variables = {int(i): pulp.LpVariable(f"x_{node}_{i}", cat="Binary") for i in labels}
            self.x.append(variables)
            self.objective += [(v, float(costs[i]) - low) for i, v in variables.items()]
            self.model += pulp.LpAffineExpression([(v, 1) for v in variables.values()]) == 1

    def _pairs(self, moved: Reparametrised, slack: float) -> None:
        for index, (edge, costs) in enumerate(zip(self.problem.edges, moved.edges, strict=True)):
            low = float(costs.min())
            above = costs - low
            part = above[np.ix_(self.kept[edge.u], self.kept[edge.v])]
            wanted = part <= slack
            self.complete &= bool((wanted == np.isfinite(part)).all())
            if wanted.all() and not np.any(part > 1e-12 * slack) and not self._has_usage(index):
                self.y.append({})
                continue
            pairs = {
                (int(self.kept[edge.u][i]), int(self.kept[edge.v][j])): pulp.LpVariable(f"y_{index}_{i}_{j}", 0, 1)
                for i, j in np.argwhere(wanted)
            }
            self.y.append(pairs)
            self.objective += [(v, float(above[key])) for key, v in pairs.items()]
            self._marginals(pairs, edge.u, 0)
            self._marginals(pairs, edge.v, 1)

    def _has_usage(self, edge: int) -> bool:
        return self.problem.limit < float("inf") and any(u.edge == edge for u in self.problem.usages)

    def _marginals(self, pairs: dict[tuple[int, int], pulp.LpVariable], node: int, side: int) -> None:
        """sum of y over the other side = x, for every label of `node`."""
        rows: dict[int, list[tuple[pulp.LpVariable, int]]] = {label: [(x, -1)] for label, x in self.x[node].items()}
        for key, y in pairs.items():
            rows[key[side]].append((y, 1))
        for row in rows.values():
            self.model += pulp.LpAffineExpression(row) == 0

    def add_memory_row(self, at: int) -> None:
        """Memory at time `at` stays within the limit."""
        terms: dict[pulp.LpVariable, float] = {}
        for usage in self.problem.usages:
            times = float(usage.profile[at])
            table = self.x[usage.node] if usage.node is not None else self.y[usage.edge]  # type: ignore[index]
            for key, variable in table.items() if times else ():
                terms[variable] = terms.get(variable, 0.0) + times * float(usage.nbytes[key]) / self.problem.limit
        self.model += pulp.LpAffineExpression([(v, c) for v, c in terms.items() if c]) <= 1

    def solve(self, time_limit: float) -> tuple[tuple[int, ...], float] | None:
        """The choice and a lower bound in the problem's own unit; None where nothing kept is feasible."""
        solver = pulp.HiGHS(msg=False, timeLimit=time_limit, gapRel=1e-9, threads=1)
        status = self.model.solve(solver)
        if pulp.LpStatus[status] == "Infeasible" or any(v.varValue is None for x in self.x for v in x.values()):
            return None
        choice = tuple(max(x, key=lambda i: float(x[i].varValue)) for x in self.x)
        highs = self.model.solverModel
        dual = float(highs.getInfo().mip_dual_bound) if highs is not None else float("nan")
        return choice, self.bound + dual / self.scale


# ------------------------------------------------------------------------------------------------- nothing fits


def _least_overflow(problem: Problem, start: tuple[int, ...], variables: int, elapsed: float) -> Solution:
    """A choice with the smallest peak found (greedy descent on the peak): what to show where nothing fits."""
    choice = list(start)
    peak = float(problem.memory(start).max())
    improved = True
    while improved:
        improved = False
        for node, costs in enumerate(problem.costs):
            for label in np.flatnonzero(np.isfinite(costs)):
                candidate = [*choice[:node], int(label), *choice[node + 1 :]]
                if not np.isfinite(problem.cost(tuple(candidate))):
                    continue
                high = float(problem.memory(tuple(candidate)).max())
                if high < peak * (1 - 1e-12):
                    choice, peak, improved = candidate, high, True
    return Solution(
        status="infeasible", choice=tuple(choice), objective=problem.cost(tuple(choice)), bound=float("inf"), time_s=elapsed,
        num_variables=variables, overflow=peak - problem.limit,
    )  # fmt: skip
