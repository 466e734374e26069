"""Plans that fit the memory: proposals made again within the limit, with ops that run again in
backward if that costs less than other ways to hold less.

Proposal -> Candidate. A proposal that fits as it is stays as it is: nothing runs again if memory
does not bind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from cost_models.memory import dtype_bytes
from planner.graph.layout import Mesh
from planner.search.proposals import Candidate, Proposal, Proposer
from planner.solver.exact.ilp import solve
from planner.solver.exact.relaxed import solve_with_pairs
from planner.solver.problem.pairs import PairUsage, completed, peak_with_pairs
from planner.solver.problem.problem import Problem
from planner.solver.problem.solution import not_found
from planner.solver.relax.peak import leanest
from planner.strategy.build_cost_table import TooLarge
from planner.strategy.cost_table import CostTable
from planner.strategy.mode_pins import pinned_again
from planner.strategy.problem import problem_of, with_memory
from planner.strategy.untied import untied

__all__ = ["MOST_PAIRS", "by_layer", "fitted", "fitting", "is_hopeless", "lean", "rank"]

#: The share of a search's time after which no plan is made to fit any more.
_FITTED = 0.9

#: How often the limit is set for a plan that is to fit, and the share of what the last choice holds
#: that is the most to be tried next.
_LIMITS, _LOWER = 4, 0.99

#: A plan that holds so many times the memory by the problem's account will not fit when it is
#: lowered: the two are within a few per cent of each other.
_FAR = 1.1

#: A choice that fits is good enough within this share of the bound on all that fit.
_NEAR = 3e-3

#: The same, as a share of the step, if every op has a mode of its own; how often such a problem is
#: solved, the seconds for each, and the share of what a choice holds to which the limit is lowered
#: at the least.
_NEAR_BY_LAYER, _ROUNDS, _PATIENCE, _LESS = 1e-4, 4, 10.0, 0.998

#: What runs again takes a notable share of a step if it is more than this: making again what goes
#: from layer to layer saves up to a fifth of it.
_NOTABLE = 0.05

#: A table of more pairs of strategies than this is too large: 25 million pairs are 200 MB. A mesh
#: of three axes is then left out, and a plan is made to fit without other modes.
MOST_PAIRS = 25_000_000


def fitting(proposer: Proposer, candidate: Candidate) -> Candidate:
    """The candidate if it fits the memory, else the best plan of its mesh that does (or the leanest
    if none does)."""
    if candidate.fits(proposer.capacity):
        return candidate
    return _made_to_fit(proposer, candidate.proposal, whole=candidate.whole, name=candidate.name)


def fitted(proposer: Proposer, proposal: Proposal) -> tuple[Candidate, bool]:
    """The `fitting` candidate of a proposal, and whether it had to be made to fit. A hopeless
    proposal is not simulated first."""
    if is_hopeless(proposer, proposal):
        return _made_to_fit(proposer, proposal), True
    candidate = proposer.candidate(proposal)
    return fitting(proposer, candidate), not candidate.fits(proposer.capacity)


def is_hopeless(proposer: Proposer, proposal: Proposal) -> bool:
    """Whether a proposal need not be simulated to see that it does not fit: the parameters and the
    optimizer's state alone exceed the memory or, if memory is short, the problem's account does by
    far."""
    model, table, held = proposer.model, proposal.table, 0
    for number, members in zip(table.parameter_of, model.ties.parameters_of, strict=True):
        value = model.graph.values[model.graph.parameters[members[0]].value]
        strategy = table.parameter_strategies[number][proposal.solution.choice[number]]
        parts = table.costing.updates.parameter_bytes(
            model.dims.flat(value.id), dtype_bytes(value.dtype), value.dtype, strategy
        )
        held += len(members) * sum(parts.values())
    if held > proposer.capacity or not proposer.is_short_of_memory:
        return held > proposer.capacity
    proposal = _with_modes(proposer, proposal)
    problem, pairs = _within(proposer, proposal)
    return peak_with_pairs(problem, pairs, proposal.solution.choice) > _FAR * proposer.capacity


def _within(proposer: Proposer, proposal: Proposal) -> tuple[Problem, Sequence[PairUsage]]:
    """The problem of a proposal within the memory, and the memory of its pairs."""
    table = proposal.table
    problem = problem_of(table, overlapped=proposal.overlapped)
    key = id(table)
    if key not in proposer.held:
        limited, pairs = with_memory(table, problem, proposer.capacity)
        proposer.held[key] = table, limited.usages, pairs
    _, usages, pairs = proposer.held[key]
    return replace(problem, limit=proposer.capacity, usages=usages), pairs


def _made_to_fit(
    proposer: Proposer, proposal: Proposal, *, whole: bool = False, name: str = ""
) -> Candidate:
    """The best plan of the proposal's mesh that fits. The problem's limit is reduced as needed,
    because a lowered program may hold more than the problem accounts for."""
    proposer.is_short_of_memory = True
    capacity, proposal = proposer.capacity, _with_modes(proposer, proposal)
    problem, pairs = _within(proposer, proposal)
    limit = capacity
    for _ in range(_LIMITS):
        time = proposer.budget.until(_FITTED)
        # nodes of pair usages follow the table's own nodes
        guess = proposal.solution.choice[: len(proposal.table.costs)]
        solution = solve_with_pairs(
            replace(problem, limit=limit),
            pairs,
            guess=guess,
            time_limit=time.left,
            stopped=time.over,
            near=_NEAR,
        )
        # It does not fit by the problem's memory: the leanest choice may still fit when lowered.
        none = solution.status in ("infeasible", "unknown")
        candidate = replace(
            proposer.candidate(replace(proposal, solution=solution), whole=whole), name=name
        )
        if none or time.over() or candidate.fits(capacity):
            break
        # below what it holds, or the solver would find the same choice again
        held = peak_with_pairs(problem, pairs, solution.choice)
        total = candidate.prediction.total_memory_bytes
        limit = min(limit, held) * min(_LOWER, capacity / total)
        proposal = candidate.proposal
    return candidate


def by_layer(proposer: Proposer, candidate: Candidate) -> Candidate:
    """A whole candidate in which ops may run again, or not, with modes of its own for every op, if
    that is faster: only as many layers run an op again as it takes to fit. If what runs again takes
    a notable share of the step, values that go from layer to layer may be made again, too."""
    table = candidate.proposal.table
    if not table.has_choice_of_modes or proposer.budget.over():
        return candidate
    best, again = _by_layer(proposer, candidate, across=False)
    pinned = pinned_again(proposer.model, candidate.proposal.pins)
    notable = again > _NOTABLE * best.prediction.step_time_s
    if pinned or proposer.budget.over() or not (notable or not best.fits(proposer.capacity)):
        return best
    return min(best, _by_layer(proposer, candidate, across=True)[0], key=partial(rank, proposer))


def _by_layer(proposer: Proposer, candidate: Candidate, *, across: bool) -> tuple[Candidate, float]:
    """The candidate with the best modes by layer, and the seconds of what runs again. The limit is
    that under which the problem's memory is the program's."""
    table, choices = candidate.proposal.table, candidate.choices
    choice = candidate.proposal.solution.choice[: len(table.costs)]
    own = untied(table, choice, math.inf, across=across)
    if not own.options:
        return candidate, 0.0
    best, again = candidate, own.problem.cost(own.tied)
    over = candidate.prediction.total_memory_bytes - own.problem.peak(own.tied)
    limit = proposer.capacity - over
    problem = own.problem.plus(candidate.prediction.step_time_s - again)
    for _ in range(_ROUNDS):
        time = proposer.budget.until(_FITTED)
        solution = solve(
            replace(problem, limit=max(0.0, limit)),
            guess=own.tied,
            near=_NEAR_BY_LAYER,
            time_limit=min(time.left, _PATIENCE),
            stopped=time.over,
        )
        if solution.status in ("infeasible", "unknown"):
            break
        modes = own.strategies(solution.choice)
        found = proposer.with_choices(
            replace(candidate, by_layer=True),
            replace(choices, strategies={**choices.strategies, **modes}),
        )
        if rank(proposer, found) < rank(proposer, best):
            best, again = found, own.problem.cost(solution.choice)
        if found.fits(proposer.capacity) or time.over():
            break
        limit -= found.prediction.total_memory_bytes - proposer.capacity
        # a little less than the same choice holds, or it would be found again
        limit = min(limit, _LESS * own.problem.peak(solution.choice))
    return best, again


def rank(proposer: Proposer, candidate: Candidate) -> tuple[float, float]:
    """Of candidates that fit, the fastest is first; of those that do not, the leanest."""
    found, fits = candidate.prediction, candidate.fits(proposer.capacity)
    return 0.0 if fits else found.total_memory_bytes, found.step_time_s


def _with_modes(proposer: Proposer, proposal: Proposal) -> Proposal:
    """The same proposal on a table in which ops may run again; as it is, if that would be too
    large."""
    table = proposal.table
    if table is proposer.with_modes.get((proposal.mesh, proposal.pins)):
        return proposal
    try:
        with_modes = proposer.table(proposal.mesh, proposal.pins, most_pairs=MOST_PAIRS, modes=True)
    except TooLarge:
        return proposal
    choice = with_modes.choice_from(table, proposal.solution.choice)
    return replace(proposal, table=with_modes, solution=replace(proposal.solution, choice=choice))


def lean(proposer: Proposer, mesh: Mesh) -> Candidate:
    """A plan of a mesh that fits the memory, or a lean one, in well under a second, without regard
    to its step time."""
    table = proposer.table(mesh, proposer.pins, modes=True)
    limit = proposer.capacity
    for _ in range(3):
        problem = problem_of(table, limit=limit)
        found = leanest(problem, None)
        if found.choice is None:  # every choice read off is forbidden
            found = leanest(problem, completed(problem, _any(proposer, table)))
        assert found.choice is not None
        solution = not_found(
            problem, found.choice, began=0.0, bound=-math.inf, lean=found.peak, known=False
        )
        candidate = proposer.candidate(
            Proposal(mesh=mesh, pins=proposer.pins, overlapped=0.0, table=table, solution=solution)
        )
        if candidate.fits(proposer.capacity) or found.peak > limit:
            break
        limit *= min(0.99, proposer.capacity / candidate.prediction.total_memory_bytes)
    return candidate


def _any(proposer: Proposer, table: CostTable) -> tuple[int, ...]:
    """A choice that nothing forbids."""
    return solve(problem_of(table), time_limit=proposer.budget.left).choice
