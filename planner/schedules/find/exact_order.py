"""The best schedule of a small task as an integer program, in PuLP on HiGHS.

    s[l,k] >= 0       start of lane l for microbatch k
    y[a,i,b,j]        1 if (a,i) runs before (b,j) at their place, for pairs that no path orders
    T                 the step

    s[l,k+1] >= s[l,k] + busy[l]                                            (`_orders`)
    s[v,k]   >= s[u,k] + lag[u,v]                    if lane v waits for u  (`_orders`)
    T        >= s[l,k] + the least that follows                             (`_orders`)
    s[b,j] >= s[a,i] + busy[a] - M (1 - y),  s[a,i] >= s[b,j] + busy[b] - M y       (`_pair`)
    y[a,i,b,j] <= y[a,i-1,b,j], y[a,i,b,j+1]                                (`_monotone`)
    bytes held at the start of F, from what runs before it, <= limit        (`_memory`)
    least <= T <= step of the best known schedule
    minimise T

`M` is as small as the earliest and the latest starts allow. Messages do not wait for each other in a
channel, so T is a lower bound also where they do.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pulp

from planner.schedules.find.lane_paths import (
    Step,
    busy_seconds,
    earliest,
    lags,
    least_after,
    num_unordered,
    reach,
    unordered,
)
from planner.schedules.find.task import Task, lanes_of, schedule_of
from planner.schedules.schedule import Schedule
from planner.solver.relax.quiet import silence_banner

__all__ = ["Proved", "num_pairs", "solve_exactly"]

_Terms = list[tuple[pulp.LpVariable, float]]

#: The step is scaled to about this, as HiGHS's tolerances are absolute.
_SCALE = 1e3


@dataclass(frozen=True, slots=True)
class Proved:
    """The schedule of the integer program, None if it has none in time, and a lower bound."""

    schedule: Schedule | None
    bound: float


def num_pairs(task: Task, in_two: bool) -> int:
    """How many pairs of actions the integer program must order."""
    lanes = lanes_of(task, in_two)
    return num_unordered(lanes, reach(lanes), task.microbatches)


def solve_exactly(task: Task, in_two: bool, least: float, step: float, seconds: float) -> Proved:
    """The best schedule no longer than `step`, where all are known to take `least`."""
    return _Model(task, in_two, least, step).solve(seconds)


class _Model:
    """The integer program of a task."""

    def __init__(self, task: Task, in_two: bool, least: float, step: float) -> None:
        silence_banner()
        self.task, self.least, self.step = task, least, step
        self.lanes, self.m, self.scale = lanes_of(task, in_two), task.microbatches, _SCALE / step
        self.busy, self.reaches = busy_seconds(self.lanes, task.costs.overlapped), reach(self.lanes)
        self.head = earliest(task, self.lanes, self.reaches, self.busy)
        self.tail = least_after(task, self.lanes, self.reaches, self.busy)
        self.model = pulp.LpProblem("order", pulp.LpMinimize)
        self.total = self.model.add_variable("T", least * self.scale, step * self.scale)
        self.start = {
            (lane, k): self.model.add_variable(
                f"s_{lane}_{k}",
                float(self.head[lane, k]) * self.scale,
                self._latest((lane, k)) * self.scale,
            )
            for lane in range(len(self.lanes.place))
            for k in range(self.m)
        }
        self.before: dict[tuple[Step, Step], pulp.LpVariable] = {}
        self._orders()
        for a, b in unordered(self.lanes, self.reaches, self.m):
            self._pair(a, b)
        self._monotone()
        self._memory()
        self.model.setObjective(pulp.LpAffineExpression([(self.total, 1)]))

    def _latest(self, action: Step) -> float:
        """The latest start of an action in a step that is no longer than the best known."""
        return max(self.step - float(self.tail[action]), float(self.head[action]))

    def _at_least(self, terms: _Terms, least: float) -> None:
        self.model += pulp.LpAffineExpression(terms) >= least

    def _orders(self) -> None:
        for (lane, k), start in self.start.items():
            self._at_least([(self.total, 1), (start, -1)], float(self.tail[lane, k]) * self.scale)
            if k + 1 < self.m:
                later = self.start[lane, k + 1]
                self._at_least([(later, 1), (start, -1)], float(self.busy[lane]) * self.scale)
        for lane, reader, lag in lags(self.lanes, self.busy):
            for k in range(self.m):
                terms = [(self.start[reader, k], 1.0), (self.start[lane, k], -1.0)]
                self._at_least(terms, lag * self.scale)

    def _pair(self, a: Step, b: Step) -> None:
        y = self.model.add_variable(f"y_{a[0]}_{a[1]}_{b[0]}_{b[1]}", cat="Binary")
        self.before[a, b] = y
        for first, then, sign, fixed in ((a, b, -1.0, 1.0), (b, a, 1.0, 0.0)):
            busy = float(self.busy[first[0]]) * self.scale
            most = max(0.0, (self._latest(first) - float(self.head[then])) * self.scale + busy)
            # start[then] >= start[first] + busy, or less by `most` if the order is the other one
            terms = [(self.start[then], 1.0), (self.start[first], -1.0), (y, sign * most)]
            self._at_least(terms, busy - fixed * most)

    def _monotone(self) -> None:
        for (a, b), y in self.before.items():
            for other in (((a[0], a[1] - 1), b), (a, (b[0], b[1] + 1))):
                if other in self.before:
                    self._at_least([(self.before[other], 1), (y, -1)], 0.0)

    def _is_before(self, a: Step, b: Step) -> tuple[float, _Terms]:
        """1 if `a` runs before `b` at their place, as a number and terms."""
        if (a, b) in self.before:
            return 0.0, [(self.before[a, b], 1.0)]
        if (b, a) in self.before:
            return 1.0, [(self.before[b, a], -1.0)]
        ordered = a[1] < b[1] if a[0] == b[0] else self.reaches[a[0], b[0]] and a[1] <= b[1]
        return float(ordered), []

    def _steps(self, place: int) -> list[Step]:
        """The actions of a place."""
        own = self.lanes.lanes[self.lanes.at[place] : self.lanes.at[place + 1]].tolist()
        return list(itertools.product(own, range(self.m)))

    def _memory(self) -> None:
        changes = self.lanes.takes - self.lanes.gives
        for place, limit in enumerate(self.task.limits):
            if limit == float("inf"):
                continue
            for forward in self._steps(place):
                if self.lanes.kind[forward[0]] == 0:
                    self._fits(
                        forward, [(a, float(changes[a[0]])) for a in self._steps(place)], limit
                    )

    def _fits(self, forward: Step, changes: list[tuple[Step, float]], limit: float) -> None:
        """Adds the row that a forward fits, given the bytes that each action leaves or frees."""
        held = float(self.lanes.takes[forward[0]])
        terms: dict[pulp.LpVariable, float] = {}
        for action, change in changes:
            if action != forward and change:
                fixed, variables = self._is_before(action, forward)
                held += change * fixed
                for variable, sign in variables:
                    terms[variable] = terms.get(variable, 0.0) - sign * change / (limit or 1.0)
        if terms:
            self._at_least(list(terms.items()), (held - limit) / (limit or 1.0) - 1e-9)

    def solve(self, seconds: float) -> Proved:
        """What HiGHS finds and proves in so many seconds."""
        self.model.solve(pulp.HiGHS(msg=False, timeLimit=seconds, gapRel=1e-9))
        solver = self.model.solverModel
        info = solver.getInfo()
        status = solver.modelStatusToString(solver.getModelStatus())
        assert status != "Not Set", "HiGHS did not begin"  # it says so with a status alone
        if "nfeasible" in status:
            return Proved(None, self.step)  # none is as short as the best known
        bound = max(self.least, min(float(info.mip_dual_bound) / self.scale, self.step))
        if info.primal_solution_status != 2:  # kSolutionStatusFeasible
            return Proved(None, bound)
        turns = [self._turns(place) for place in range(self.task.num_places)]
        return Proved(schedule_of(self.task, self.lanes, turns), bound)

    def _turns(self, place: int) -> list[int]:
        """The lanes of a place in turn: an action has as many before it as come before it."""
        steps = self._steps(place)

        def rank(b: Step) -> float:
            pairs = [self._is_before(a, b) for a in steps if a != b]
            return sum(n + sum(c * float(round(v.varValue)) for v, c in ts) for n, ts in pairs)

        return [lane for lane, _ in sorted(steps, key=rank)]
