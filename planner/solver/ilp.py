"""The integer program, in PuLP on HiGHS.

    x[n,i] in {0,1}   node n chooses i            sum_i x[n,i] = 1                       (`_choices`)
    y[e,i,j] >= 0     edge e sees the pair i, j   sum_j y[e,i,j] = x[u,i]                (`_pairs`: the local polytope,
                                                  sum_i y[e,i,j] = x[v,j]                 whose LP is almost always integral)
    for each time t that was found over the limit:
                      sum m_n[i] x[n,i] <= room                                          (`add_memory_row`, added lazily)
    minimise          sum c_n[i] x[n,i] + sum C_e[i,j] y[e,i,j]

Before PuLP sees it, message passing (with prices on memory, where the limit binds) gives a bound L and rules out every choice and
pair that no solution of cost <= L + slack can contain. If the reduced program's optimum is within L + slack, it is the optimum of
the whole problem; else the slack grows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pulp
from numpy.typing import NDArray

from planner.solver.bound import Reparametrised, decode, reparametrise
from planner.solver.memory import price
from planner.solver.pairs import completed
from planner.solver.peak import leanest, smallest_peak
from planner.solver.polytope import Polytope
from planner.solver.problem import Array, Choice, Problem
from planner.solver.quiet import silence_banner
from planner.solver.reduce import STEPS, Contradiction, reduce
from planner.solver.rows import Rows
from planner.solver.solution import TOLERANCE, Solution

__all__ = ["solve"]

Labels = NDArray[np.int64]
Terms = dict[pulp.LpVariable, float]
_Variables = dict[tuple[int, ...], pulp.LpVariable]

#: Costs are scaled so that the bound is about this, where the solver's absolute tolerances (1e-6 and less) mean 1e-9 of it.
_SCALE = 1e3

#: Where no choice that fits is found quickly, an integer program is asked for the leanest, for so many seconds; for a choice that is
#: asked for anyway, only where so few pairs make that quick.
_PATIENCE, _FEW_PAIRS = 20.0, 20_000

#: Dominance compares every two strategies of a node, of which the planner's have hundreds: half of the time to plan llama on 8 devices,
#: for what message passing rules out anyway.
_CHEAP = [step for step in STEPS if step != "dominate"]

#: Of so many pairs and more, compiled message passing narrows the problem first (to import it takes a third of a second). Chains are
#: then left for later: their tables are the largest.
_LARGE = 1_000_000

#: Rounds of message passing, sweeps in each, and how many choices left over are few.
_ROUNDS, _SWEEPS, _FEW = 8, 25, 150

#: An integer program of more variables than this takes longer to write down than it is worth: the bound stays where it is.
_MOST = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """What is known before the integer program: bound, costs moved (with `prices` on memory), a choice that fits."""

    moved: Reparametrised
    prices: Mapping[int, float]
    bound: float
    choice: Choice


def solve(problem: Problem, *, time_limit: float = 60.0, guess: Choice | None = None) -> Solution:
    """The best choice, its proof, and what the proof rests on. `guess` is a choice that may be good: the nearer it is to the best,
    the less is left for the integer program."""
    began = time.perf_counter()
    choices = [completed(problem, guess)] if guess is not None else []
    choices = [choice for choice in choices if problem.fits(choice)]
    try:
        left = _reduced(problem, min(map(problem.cost, choices), default=float("inf")))
        start = _start(left.problem)
    except Contradiction:
        return _infeasible(problem, began)
    choices += [left.restore(start.choice), *([left.choice] if left.choice is not None else [])]
    bound, variables = start.bound, 0
    if left.problem.costs:
        upper = min(map(problem.cost, choices)) - left.offset
        found, bound, variables = _improve(left.problem, start, upper, began + time_limit)
        choices.append(left.restore(found))
    best = min(choices, key=problem.cost)
    objective = problem.cost(best)
    bound = min(bound + left.offset, objective)
    status = "optimal" if objective - bound <= TOLERANCE * abs(objective) else "feasible"
    return Solution(
        status=status,
        choice=best,
        objective=objective,
        bound=bound,
        num_variables=variables,
        time_s=time.perf_counter() - began,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Left:
    """What is left of a problem after reduction, and a choice of the whole that was met on the way."""

    problem: Problem
    offset: float
    restore: Callable[[Choice], Choice]
    choice: Choice | None = None


def _reduced(problem: Problem, upper: float) -> _Left:
    """The problem reduced; one of many pairs and without a limit narrowed to what may better `upper`, too."""
    if problem.limit < float("inf") or problem.num_pairs < _LARGE:
        reduced = reduce(problem, _CHEAP)
        return _Left(problem=reduced.problem, offset=reduced.offset, restore=reduced.restore)
    from planner.solver.narrow import narrow

    first = reduce(problem, [step for step in _CHEAP if step != "chain"])
    narrowed = narrow(first.problem, _CHEAP, upper=upper - first.offset, constant=first.offset)
    return _Left(
        problem=narrowed.problem, offset=first.offset + narrowed.offset,
        restore=lambda choice: first.restore(narrowed.restore(choice)),
        choice=None if narrowed.choice is None else first.restore(narrowed.choice),
    )  # fmt: skip


def _improve(problem: Problem, start: _Start, upper: float, deadline: float) -> tuple[Choice, float, int]:
    """The best choice that programs within a growing slack find, the bound, and the variables of the largest. `upper` is the cost
    of a choice that is known, of `start` or another."""
    whole = max(upper - start.bound, 1e-9 * abs(start.bound))
    slack = min(whole, max(0.1 * whole, 0.005 * abs(start.bound)))
    best, bound, variables = start.choice, start.bound, 0
    while _num_kept(problem, start, slack) <= _MOST:
        model = _Model(problem, start, slack * (1 + 1e-9))
        variables = max(variables, model.num_variables)
        found = model.best_fitting(max(1.0, deadline - time.perf_counter()))
        if found is not None and problem.cost(found.choice) < problem.cost(best):
            best = found.choice
        if found is None and not model.exhausted:
            break
        proved = slack >= whole if found is None else problem.cost(found.choice) <= start.bound + slack or slack >= whole
        if proved:
            inside = found.bound if found is not None else float("inf")
            bound = min(inside, start.bound + slack)
            break
        if time.perf_counter() > deadline:
            break
        slack = min(whole, 4 * slack)
    return best, max(start.bound, bound), variables


def _start(problem: Problem) -> _Start:
    """Bound and first choice. Raises Contradiction where nothing is possible, or nothing fits."""
    if not problem.costs:
        nothing = Reparametrised(nodes=(), edges=(), bound=0.0, converged=True)
        return _Start(moved=nothing, prices={}, bound=0.0, choice=())
    moved, choice = _moved(problem)
    if not np.isfinite(problem.cost(choice)):
        choice = _possible(problem)
    if problem.limit == float("inf") or problem.fits(choice):
        return _Start(moved=moved, prices={}, bound=moved.bound, choice=choice)
    priced = price(problem, choice)
    if priced is not None and priced.choice is not None:
        better = priced if priced.bound > moved.bound else None
        return _Start(
            moved=better.moved if better else moved, prices=better.prices if better else {},
            bound=max(priced.bound, moved.bound), choice=priced.choice,
        )  # fmt: skip
    lean = _leanest(problem, choice)
    if not problem.fits(lean):
        raise Contradiction
    return _Start(moved=moved, prices={}, bound=moved.bound, choice=lean)


def _leanest(problem: Problem, possible: Choice) -> Choice:
    """A choice that fits, or the leanest found; exactly, where the quick way leaves that open and the problem is small."""
    lean = leanest(problem, possible)
    assert lean.choice is not None
    if problem.fits(lean.choice) or lean.peak > problem.limit or _num_possible(problem) > _FEW_PAIRS:
        return lean.choice
    exact = smallest_peak(problem, time.perf_counter() + _PATIENCE).choice
    return lean.choice if exact is None or problem.peak(exact) > problem.peak(lean.choice) else exact


def _num_possible(problem: Problem) -> int:
    return sum(int(np.isfinite(edge.cost).sum()) for edge in problem.edges)


def _possible(problem: Problem) -> Choice:
    """A choice that nothing forbids, by integer program: for where the quick ways find none."""
    free = replace(problem, limit=float("inf"), base=None)
    found = Polytope(free, Rows(free)).solve(time.perf_counter() + _PATIENCE)
    if found.choice is None:
        raise Contradiction
    return found.choice


def _infeasible(problem: Problem, began: float) -> Solution:
    """The leanest choice that is found, or none where the pairs leave none."""
    impossible = problem.limit == float("inf")
    free = None if impossible else solve(replace(problem, limit=float("inf")))
    if free is None or not free.choice:
        return Solution(
            status="infeasible", choice=(), objective=float("inf"), bound=float("inf"), num_variables=0, lean_bound=float("inf"),
            time_s=time.perf_counter() - began,
        )  # fmt: skip
    lean = leanest(problem, free.choice)
    if lean.peak <= problem.limit or _num_possible(problem) <= _FEW_PAIRS:
        exact = smallest_peak(problem, time.perf_counter() + _PATIENCE)
        lean = exact if exact.choice is not None and problem.peak(exact.choice) <= problem.peak(lean.choice or ()) else lean
    choice = lean.choice or ()
    return Solution(
        status="infeasible" if lean.peak > problem.limit else "unknown", choice=choice, objective=problem.cost(choice),
        bound=free.bound, num_variables=0, lean_bound=lean.peak, lean_at=lean.at, time_s=time.perf_counter() - began,
        overflow=max(0.0, problem.peak(choice) - problem.limit),
    )  # fmt: skip


def _num_kept(problem: Problem, start: _Start, slack: float) -> int:
    """About how many variables the integer program has that `slack` leaves."""
    kept = [n - n.min() <= slack for n in start.moved.nodes]
    pairs = (t[np.ix_(kept[e.u], kept[e.v])] for e, t in zip(problem.edges, start.moved.edges, strict=True))
    return sum(int(k.sum()) for k in kept) + sum(int((table - table.min() <= slack).sum()) for table in pairs)


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
    choice: Choice
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
        self._choices()
        for index in range(len(problem.edges)):
            self._pairs(index, slack)
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

    def _pairs(self, index: int, slack: float) -> None:
        edge, costs = self.problem.edges[index], self.start.moved.edges[index]
        above = costs - costs.min()
        part = above[np.ix_(self.kept[edge.u], self.kept[edge.v])]
        wanted = np.isfinite(part) & (part <= slack)
        if bool(wanted.all()) and float(part.max()) <= 1e-12 * abs(self.start.bound):
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
            times = usage.times(at)
            if times:
                for (label,), variable in self.x[usage.node].items():
                    terms[variable] = terms.get(variable, 0.0) + times * float(usage.nbytes[label])
        return terms

    def add_memory_row(self, at: int) -> None:
        """Memory at time `at` stays within the limit."""
        terms = [(v, nbytes / self.problem.limit) for v, nbytes in self._memory(at).items() if nbytes]
        self.model += pulp.LpAffineExpression(terms) <= self.problem.room(at) / self.problem.limit

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
