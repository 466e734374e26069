"""The integer program, in PuLP on HiGHS.

    x[n,i] in {0,1}   node n chooses i            sum_i x[n,i] = 1                       (`_choices`)
    y[e,i,j] >= 0     edge e sees the pair i, j   sum_j y[e,i,j] = x[u,i]                (`_pairs`: the local polytope,
                                                  sum_i y[e,i,j] = x[v,j]                 whose LP is almost always integral)
    for each time t that was found over the limit:
                      sum m_n[i] x[n,i] + sum M_e[i,j] y[e,i,j] <= limit                 (`add_memory_row`, added lazily)
    minimise          sum c_n[i] x[n,i] + sum C_e[i,j] y[e,i,j]

Before PuLP sees it, message passing (with prices on memory, where the limit binds) gives a bound L and rules out every choice and
pair that no solution of cost <= L + slack can contain. If the reduced program's optimum is within L + slack, it is the optimum of
the whole problem; else the slack grows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pulp
from numpy.typing import NDArray

from planner.solver.bound import Reparametrised, decode, reparametrise
from planner.solver.memory import leanest, price
from planner.solver.problem import Array, Problem
from planner.solver.quiet import silence_banner

__all__ = ["Solution", "solve"]

Labels = NDArray[np.int64]
Terms = dict[pulp.LpVariable, float]
_Variables = dict[tuple[int, ...], pulp.LpVariable]

#: Costs are scaled so that the bound is about this, where the solver's absolute tolerances (1e-6 and less) mean 1e-9 of it.
_SCALE = 1e3

#: Where no choice that fits is found quickly, the whole integer program is asked if it is small, for so many seconds.
_FEW_PAIRS, _PATIENCE = 20_000, 20.0

#: Rounds of message passing, sweeps in each, and how many choices left over are few.
_ROUNDS, _SWEEPS, _FEW = 8, 25, 150

#: An integer program of more variables than this takes longer to write down than it is worth: the bound stays where it is.
_MOST = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """`status` is `optimal` (bound and objective meet within 1e-6), `feasible` (the time limit came first) or `infeasible` (no choice
    within the limit was found: `choice` is then the leanest, `overflow` what it lacks, and `lean_bound` a lower bound on any peak;
    where the pairs leave no choice at all, `objective` is infinite). `gap` is (objective - bound) / objective."""

    status: str
    choice: tuple[int, ...]
    objective: float
    bound: float
    time_s: float
    num_variables: int
    overflow: float = 0.0
    lean_bound: float = 0.0

    @property
    def gap(self) -> float:
        return 0.0 if self.objective <= self.bound else (self.objective - self.bound) / max(abs(self.objective), 1e-30)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """What is known before the integer program: bound, costs moved (with `prices` on memory), a choice that fits."""

    moved: Reparametrised
    prices: Mapping[int, float]
    bound: float
    choice: tuple[int, ...]


def solve(problem: Problem, *, time_limit: float = 60.0, guess: tuple[int, ...] | None = None) -> Solution:
    """The best choice, its proof, and what the proof rests on. `guess` is a choice that may be good: the nearer it is to the best,
    the less is left for the integer program."""
    began = time.perf_counter()
    start = _start(problem)
    if isinstance(start, Solution):
        return start
    if guess is not None and problem.cost(guess) < problem.cost(start.choice) and _peak(problem, guess) <= problem.limit:
        start = replace(start, choice=guess)
    upper = problem.cost(start.choice)
    whole = max(upper - start.bound, 1e-9 * abs(start.bound))
    slack = min(whole, max(0.1 * whole, 0.005 * abs(start.bound)))
    variables = 0
    best, bound = start.choice, start.bound
    while _num_kept(problem, start, slack) <= _MOST:
        model = _Model(problem, start, slack * (1 + 1e-9))
        variables = max(variables, model.num_variables)
        found = model.best_fitting(max(1.0, time_limit - (time.perf_counter() - began)))
        if found is not None and problem.cost(found.choice) < problem.cost(best):
            best = found.choice
        if found is None and not model.exhausted:
            break
        proved = slack >= whole if found is None else problem.cost(found.choice) <= start.bound + slack or slack >= whole
        if proved:
            inside = found.bound if found is not None else float("inf")
            bound = min(inside, start.bound + slack)
            break
        if time.perf_counter() - began > time_limit:
            break
        slack = min(whole, 4 * slack)
    objective = problem.cost(best)
    bound = max(start.bound, min(bound, objective))
    status = "optimal" if objective - bound <= 1e-6 * abs(objective) else "feasible"
    return Solution(
        status=status, choice=best, objective=objective, bound=min(bound, objective), num_variables=variables,
        time_s=time.perf_counter() - began,
    )  # fmt: skip


def _start(problem: Problem) -> _Start | Solution:
    """Bound and first choice; a Solution at once where nothing fits."""
    began = time.perf_counter()
    moved, choice = _moved(problem)
    if not np.isfinite(problem.cost(choice)):
        found = _exactly(replace(problem, limit=float("inf")), moved) if np.isfinite(moved.bound) else None
        if found is None:
            return _infeasible(problem, choice, float("inf"), began)
        choice = found
    if problem.limit == float("inf") or bool((problem.memory(choice) <= problem.limit).all()):
        return _Start(moved=moved, prices={}, bound=moved.bound, choice=choice)
    priced = price(problem, choice)
    if priced is not None and priced.choice is not None:
        better = priced if priced.bound > moved.bound else None
        return _Start(
            moved=better.moved if better else moved, prices=better.prices if better else {},
            bound=max(priced.bound, moved.bound), choice=priced.choice,
        )  # fmt: skip
    lean, peak, bound = leanest(problem, choice)
    if peak > problem.limit >= bound and _num_pairs(problem) <= _FEW_PAIRS:
        lean = _exactly(problem, moved) or lean
    if _peak(problem, lean) <= problem.limit * (1 + 1e-9):
        return _Start(moved=moved, prices={}, bound=moved.bound, choice=lean)
    return _infeasible(problem, lean, moved.bound, began, lean_bound=bound)


def _infeasible(problem: Problem, choice: tuple[int, ...], bound: float, began: float, lean_bound: float = 0.0) -> Solution:
    return Solution(
        status="infeasible", choice=choice, objective=problem.cost(choice), bound=bound, num_variables=0, lean_bound=lean_bound,
        time_s=time.perf_counter() - began, overflow=max(0.0, _peak(problem, choice) - problem.limit),
    )  # fmt: skip


def _exactly(problem: Problem, moved: Reparametrised) -> tuple[int, ...] | None:
    """A choice that is possible and fits, by the whole integer program: for where the quick ways find none."""
    start = _Start(moved=moved, prices={}, bound=moved.bound, choice=())
    found = _Model(problem, start, float("inf")).best_fitting(_PATIENCE)
    return None if found is None or not np.isfinite(problem.cost(found.choice)) else found.choice


def _num_kept(problem: Problem, start: _Start, slack: float) -> int:
    """About how many variables the integer program has that `slack` leaves."""
    kept = [n - n.min() <= slack for n in start.moved.nodes]
    pairs = (t[np.ix_(kept[e.u], kept[e.v])] for e, t in zip(problem.edges, start.moved.edges, strict=True))
    return sum(int(k.sum()) for k in kept) + sum(int((table - table.min() <= slack).sum()) for table in pairs)


def _num_pairs(problem: Problem) -> int:
    return sum(int(np.isfinite(edge.cost).sum()) for edge in problem.edges)


def _peak(problem: Problem, choice: tuple[int, ...]) -> float:
    return float(problem.memory(choice).max(initial=0.0))


def _moved(problem: Problem) -> tuple[Reparametrised, tuple[int, ...]]:
    """Message passing until it has converged, or has left so few choices that the integer program is the quicker way on."""
    moved = None
    for _ in range(_ROUNDS):
        moved = reparametrise(problem, sweeps=_SWEEPS, start=moved)
        choice = decode(problem, moved)
        if moved.converged or not np.isfinite(moved.bound) or moved.kept(problem.cost(choice) - moved.bound) <= _FEW:
            break
    assert moved is not None
    return moved, choice


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    choice: tuple[int, ...]
    bound: float


class _Model:
    """The PuLP model of what no bound rules out. Its objective is the moved costs above their minima, less what the prices added:
    the same as the true objective but for a constant, and better scaled."""

    def __init__(self, problem: Problem, start: _Start, slack: float) -> None:
        silence_banner()
        self.problem, self.start = problem, start
        self.exhausted = False  # whether it was shown that no choice (more) fits
        self.kept: list[Labels] = [np.flatnonzero(np.isfinite(n) & (n - n.min() <= slack)) for n in start.moved.nodes]
        unit = max(abs(start.bound), slack if np.isfinite(slack) else _largest(start.moved))
        self.scale = _SCALE / (unit or 1.0)
        self.model = pulp.LpProblem("strategies", pulp.LpMinimize)
        self.x: list[_Variables] = []
        self.y: list[_Variables] = []
        self.objective: Terms = {}
        used = {u.edge for u in problem.usages if u.edge is not None} if problem.limit < float("inf") else set()
        self._choices()
        for index in range(len(problem.edges)):
            self._pairs(index, slack, index in used)
        for at, rate in start.prices.items():
            for variable, nbytes in self._memory(at).items():
                self.objective[variable] = self.objective.get(variable, 0.0) - rate * nbytes
        self.model.setObjective(pulp.LpAffineExpression([(v, c * self.scale) for v, c in self.objective.items() if c]))

    @property
    def num_variables(self) -> int:
        return sum(map(len, self.x)) + sum(map(len, self.y))

    def _choices(self) -> None:
        for node, (labels, costs) in enumerate(zip(self.kept, self.start.moved.nodes, strict=True)):
            low = float(costs.min())
            variables: _Variables = {(int(i),): self.model.add_variable(f"x_{node}_{i}", cat="Binary") for i in labels}
            self.x.append(variables)
            self.objective |= {v: float(costs[i]) - low for i, v in variables.items()}
            self.model += pulp.LpAffineExpression([(v, 1) for v in variables.values()]) == 1

    def _pairs(self, index: int, slack: float, used: bool) -> None:
        edge, costs = self.problem.edges[index], self.start.moved.edges[index]
        above = costs - costs.min()
        part = above[np.ix_(self.kept[edge.u], self.kept[edge.v])]
        wanted = np.isfinite(part) & (part <= slack)
        if not used and bool(wanted.all()) and float(part.max()) <= 1e-12 * abs(self.start.bound):
            self.y.append({})
            return
        pairs: _Variables = {
            (int(self.kept[edge.u][i]), int(self.kept[edge.v][j])): self.model.add_variable(f"y_{index}_{i}_{j}", 0, 1)
            for i, j in np.argwhere(wanted)
        }
        self.y.append(pairs)
        self.objective |= {v: float(above[key]) for key, v in pairs.items()}
        self._marginals(pairs, edge.u, 0)
        self._marginals(pairs, edge.v, 1)

    def _marginals(self, pairs: dict[tuple[int, ...], pulp.LpVariable], node: int, side: int) -> None:
        """sum of y over the other side = x, for every label of `node`."""
        rows: dict[int, list[tuple[pulp.LpVariable, int]]] = {label: [(x, -1)] for (label,), x in self.x[node].items()}
        for key, y in pairs.items():
            rows[key[side]].append((y, 1))
        for row in rows.values():
            self.model += pulp.LpAffineExpression(row) == 0

    def _memory(self, at: int) -> Terms:
        """Bytes held at time `at`, as terms of the model."""
        terms: Terms = {}
        for usage in self.problem.usages:
            times = float(usage.profile[at])
            if not times:
                continue
            table = self.x[usage.node] if usage.node is not None else self.y[usage.edge]  # type: ignore[index]
            for key, variable in table.items():
                terms[variable] = terms.get(variable, 0.0) + times * float(usage.nbytes[key])
        return terms

    def add_memory_row(self, at: int) -> None:
        """Memory at time `at` stays within the limit."""
        terms = [(v, nbytes / self.problem.limit) for v, nbytes in self._memory(at).items() if nbytes]
        self.model += pulp.LpAffineExpression(terms) <= 1

    def best_fitting(self, time_limit: float) -> _Found | None:
        """The best choice of the model that fits at every time, rows added until none is violated; None where there is none."""
        began = time.perf_counter()
        for at in self.start.prices:
            self.add_memory_row(at)
        while True:
            found = self._solve(max(1.0, time_limit - (time.perf_counter() - began)))
            if found is None or self.problem.limit == float("inf"):
                return found
            memory = self.problem.memory(found.choice)
            over = np.flatnonzero(memory > self.problem.limit * (1 + 1e-9))
            if not len(over):
                return found
            for at in _peaks(memory, over):
                self.add_memory_row(int(at))

    def _solve(self, time_limit: float) -> _Found | None:
        self.model.solve(pulp.HiGHS(msg=False, timeLimit=time_limit, gapRel=1e-9))
        info = self.model.solverModel.getInfo()
        if info.primal_solution_status != 2:  # kSolutionStatusFeasible
            self.exhausted = "nfeasible" in self.model.solverModel.modelStatusToString(self.model.solverModel.getModelStatus())
            return None
        choice = tuple(max(x, key=lambda i: float(x[i].varValue))[0] for x in self.x)
        constant = self.start.moved.bound
        return _Found(choice=choice, bound=constant + float(info.mip_dual_bound) / self.scale)


def _largest(moved: Reparametrised) -> float:
    """The largest possible cost."""
    return max(float(np.abs(table[np.isfinite(table)]).max(initial=0.0)) for table in (*moved.nodes, *moved.edges))


def _peaks(memory: Array, over: Labels) -> Labels:
    """The few times to forbid first: the highest, and the first, middle and last that are too high."""
    highest = over[np.argsort(memory[over])[-3:]]
    return np.unique(np.concatenate([highest, over[[0, len(over) // 2, -1]]]))
