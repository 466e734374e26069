"""Chooses the proposals that are worth simulating, and the plan among all that was simulated.

Proposals, baselines -> Candidate. Every plan that is simulated and fits is a candidate, baselines
included. The fastest is chosen; of those that are practically equal, the one that is easiest to
explain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from planner.plans.plan import Alternative
from planner.search.baselines import baseline, baselines
from planner.search.buckets import with_best_bucket
from planner.search.fitting import by_layer, fitted, fitting, is_hopeless
from planner.search.misfit import Misfit
from planner.search.proposals import Candidate, Proposal, Proposer

__all__ = ["choose", "shortlist"]

#: The most meshes simulated for each objective, by how many objectives there are, those
#: that hide less first; and how near to the best objective they must be. Over several nodes the
#: fastest may be the fifth (gpt2-xl on 64 H100).
SHORT, NEAR = {0: (), 1: (3,), 2: (3, 3), 3: (3, 5, 3)}, 0.05

#: A plan is made to fit only if it may be better by this share than one that fits already.
WORTH_FITTING = 0.01

#: Steps that differ by less than this share are practically equal.
EQUAL = 1e-3

#: A candidate is simulated again, whole and with its best buckets, if its step is longer than the
#: best one's by at most this share. That takes long for a deep model: there, only baselines and
#: practically equal candidates are.
CLOSE = 0.01


def shortlist(proposer: Proposer, proposals: list[Proposal]) -> list[Candidate]:
    """The proposals worth simulating: for each objective, the best few within `NEAR` of the best;
    all of them if none of those fits."""
    near, found = [], []
    objectives = sorted({p.overlapped for p in proposals})
    for overlapped, most in zip(objectives, SHORT[len(objectives)], strict=True):
        same = sorted(
            (p for p in proposals if p.overlapped == overlapped),
            key=lambda p: (p.solution.objective, len(p.mesh.sizes)),
        )
        # Of equal plans on several meshes, the one with the fewest axes.
        alike = {f"{p.solution.objective:.9e}": p for p in reversed(same)}
        distinct = sorted(alike.values(), key=lambda p: p.solution.objective)
        here = [
            p
            for p in distinct[:most]
            if p.solution.objective <= same[0].solution.objective * (1 + NEAR)
        ]
        near += here
        found += _fitting_ones(proposer, here)
    if any(c.fits(proposer.capacity) for c in found):
        return found
    for proposal in proposals:
        if (
            proposal not in near
            and proposal.overlapped == 0.0
            and not (found and proposer.budget.over())
        ):
            found.append(fitted(proposer, proposal)[0])
    return found


def _fitting_ones(proposer: Proposer, proposals: list[Proposal]) -> list[Candidate]:
    """The candidates of proposals for one objective, best first, made to fit. Left out are those
    that cannot be better by `WORTH_FITTING` than one that was found, once they fit."""
    found, least = [], math.inf
    for proposal in proposals:
        if least < math.inf and proposer.budget.over():
            break
        worth = proposal.solution.bound <= least * (1 - WORTH_FITTING)
        if not worth and (
            is_hopeless(proposer, proposal)
            or not proposer.candidate(proposal).fits(proposer.capacity)
        ):
            continue
        candidate, _ = fitted(proposer, proposal)
        if candidate.fits(proposer.capacity):
            least = min(least, candidate.proposal.solution.objective)
        found.append(candidate)
    return found


def choose(
    proposer: Proposer,
    candidates: Sequence[Candidate],
    rows: tuple[Alternative, ...],
    whole: Sequence[Candidate] = (),
) -> tuple[Candidate, tuple[Alternative, ...]]:
    """The plan, lowered whole, and the rows of the baselines. No baseline that fits and is allowed
    is faster than the plan. `whole` are plans that were chosen before. Raises Misfit if no plan
    fits."""
    contest = _Contest(proposer, list(candidates), rows, list(whole))
    while contest.next_one():
        pass
    return contest.winner(), contest.rows


@dataclass
class _Contest:
    """Lowers candidates whole, one after another, as long as one that is not yet whole may be the
    best. Extrapolated steps are within a few per cent of those of whole programs, so the plan's
    step may turn out longer than another's extrapolated step."""

    proposer: Proposer
    waiting: list[Candidate]
    rows: tuple[Alternative, ...]
    whole: list[Candidate] = field(default_factory=list)
    misfits: list[Candidate] = field(default_factory=list)
    # The baselines that are in `whole`, or have been ruled out.
    known: set[str] = field(default_factory=set)

    @property
    def fastest(self) -> float:
        return min((c.prediction.step_time_s for c in self.whole), default=math.inf)

    def next_one(self) -> bool:
        """Lowers whole the fastest candidate that fits and may be faster than all whole ones;
        returns whether there was one. After the end of the budget, only a candidate that the report
        would show as faster than the plan."""
        capacity, late = self.proposer.capacity, self.proposer.budget.over()
        near = self.fastest * (1 + (0.0 if late else EQUAL if self.proposer.shallow else CLOSE))
        close = self.fastest * (1 + (0.0 if late else CLOSE))
        mine = [c for c in self.waiting if c.fits(capacity) and c.prediction.step_time_s <= near]
        theirs = [(seconds, row.name) for seconds, row in self._open_rows() if seconds <= close]
        best = min(mine, key=lambda c: c.prediction.step_time_s, default=None)
        if theirs and (best is None or min(theirs)[0] <= best.prediction.step_time_s):
            self._take_row(min(theirs)[1])
        elif best is not None:
            self.waiting.remove(best)
            self._take(best)
        return best is not None or bool(theirs)

    def _open_rows(self) -> Iterator[tuple[float, Alternative]]:
        for row in self.rows:
            if (
                row.fits
                and row.allowed
                and row.step_time_s is not None
                and row.name not in self.known
            ):
                yield row.step_time_s, row

    def _take(self, candidate: Candidate) -> Candidate:
        found = (
            candidate
            if candidate.whole
            else self.proposer.candidate(candidate.proposal, whole=True)
        )
        if not self.proposer.budget.over():
            found = with_best_bucket(
                found, self.proposer.capacity, partial(self.proposer.bucketed, found)
            )
        found = by_layer(self.proposer, fitting(self.proposer, found))
        found = replace(found, name=candidate.name)
        (self.whole if found.fits(self.proposer.capacity) else self.misfits).append(found)
        return found

    def _take_row(self, name: str) -> None:
        """Makes the candidate of a baseline, and updates its row from the whole program."""
        self.known.add(name)
        one = next(one for one in baselines(self.proposer.cluster) if one.name == name)
        found = self._take(baseline(self.proposer, one)[0])
        self.rows = tuple(
            replace(
                row,
                step_time_s=found.prediction.step_time_s,
                memory_bytes=found.prediction.total_memory_bytes,
                fits=found.fits(self.proposer.capacity),
            )
            if row.name == name
            else row
            for row in self.rows
        )

    def winner(self) -> Candidate:
        """The plan: among the fastest and those practically equal to it, but not slower than any
        row, the one with the fewest axes, then one with a name, then the least memory."""
        if not self.whole:
            raise Misfit(self.proposer, [*self.waiting, *self.misfits])
        rows = [
            row.step_time_s
            for row in self.rows
            if row.fits and row.allowed and row.step_time_s is not None
        ]
        most = min(self.fastest * (1 + EQUAL), *rows, math.inf)
        equal = [c for c in self.whole if c.prediction.step_time_s <= max(most, self.fastest)]
        return min(
            equal,
            key=lambda c: (
                len(c.mesh.sizes),
                not c.name,
                c.prediction.total_memory_bytes,
                c.prediction.step_time_s,
            ),
        )
