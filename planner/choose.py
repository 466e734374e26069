"""Choosing among proposals: which are worth simulating, which fits and is fastest, whether a baseline is better still."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from planner.baselines import baseline, baselines
from planner.buckets import with_best_bucket
from planner.misfit import Misfit
from planner.plan_file import Alternative
from planner.proposals import Candidate, Proposal, Proposer

__all__ = ["better_typed", "best_of", "shortlist", "whole"]

#: Of all meshes, how many are simulated for each objective, and how near to the best objective they must be.
SHORT, NEAR = 3, 0.05

#: A plan that has to be made to fit is worth that if it may be better by this share than one that fits.
WORTH_FITTING = 0.01


def shortlist(proposer: Proposer, proposals: list[Proposal]) -> list[Candidate]:
    """The proposals worth simulating: for each objective, the best few within `NEAR` of the best; all, where none of those fits."""
    near, found = [], []
    for hidden in sorted({p.hidden for p in proposals}):
        same = sorted((p for p in proposals if p.hidden == hidden), key=lambda p: (p.solution.objective, len(p.mesh.sizes)))
        alike = {f"{p.solution.objective:.9e}": p for p in reversed(same)}  # equal plans on several meshes: the fewest axes
        distinct = sorted(alike.values(), key=lambda p: p.solution.objective)
        here = [p for p in distinct[:SHORT] if p.solution.objective <= same[0].solution.objective * (1 + NEAR)]
        near += here
        found += _fitting_ones(proposer, here)
    if any(c.fits(proposer.capacity) for c in found):
        return found
    for proposal in proposals:
        if proposal not in near and proposal.hidden == 0.0 and not (found and proposer.budget.over()):
            found.append(proposer.fitting(proposer.candidate(proposal)))
    return found


def _fitting_ones(proposer: Proposer, proposals: list[Proposal]) -> list[Candidate]:
    """The candidates of proposals for one objective, best first, made to fit: all but those of which no plan that fits can be
    better by `WORTH_FITTING` than one that was found."""
    found, least = [], math.inf
    for proposal in proposals:
        if least < math.inf and proposer.budget.over():
            break
        candidate = proposer.candidate(proposal)
        if not candidate.fits(proposer.capacity):
            if proposal.solution.bound > least * (1 - WORTH_FITTING):
                continue
            candidate = proposer.fitting(candidate)
        if candidate.fits(proposer.capacity):
            least = min(least, candidate.proposal.solution.objective)
        found.append(candidate)
    return found


def best_of(proposer: Proposer, candidates: list[Candidate]) -> Candidate:
    """The fitting candidate with the shortest simulated step; among equals the fewest axes, then the lowest objective. Raises
    Misfit."""
    fitting = [c for c in candidates if c.fits(proposer.capacity)]
    if not fitting:
        raise Misfit(min(candidates, key=lambda c: c.prediction.total_memory_bytes))
    fastest = min(c.prediction.step_time_s for c in fitting)
    equal = [c for c in fitting if c.prediction.step_time_s <= fastest * (1 + 1e-3)]
    return min(equal, key=lambda c: (len(c.mesh.sizes), c.prediction.step_time_s))


def whole(proposer: Proposer, best: Candidate) -> Candidate:
    """The candidate lowered and simulated whole, with buckets of the best size. Raises Misfit."""
    found = best if best.whole else proposer.candidate(best.proposal, whole=True)
    if not proposer.budget.over():
        found = with_best_bucket(found, proposer.capacity, partial(proposer.bucketed, found))
    found = proposer.fitting(found)
    if not found.fits(proposer.capacity):
        raise Misfit(found)
    return found


def better_typed(proposer: Proposer, best: Candidate, alternatives: tuple[Alternative, ...]) -> Candidate:
    """A plan typed by hand replaces the best only if it simulates more than 1 % faster; its gap is then told against the
    bound of the free plan on the same mesh."""
    times = {row.name: row.step_time_s for row in alternatives if row.fits and row.step_time_s is not None}
    name = min(times, key=lambda name: times[name], default="")
    if not name or times[name] >= 0.99 * best.prediction.step_time_s:
        return best
    chosen = next(baseline(proposer, mesh, pins) for typed, mesh, pins in baselines(proposer.cluster) if typed == name)
    free = next(p for p in proposer.proposals(chosen.mesh) if p.hidden == chosen.proposal.hidden)
    told = replace(chosen.proposal.solution, bound=free.solution.bound)
    return replace(chosen, proposal=replace(chosen.proposal, solution=told))
