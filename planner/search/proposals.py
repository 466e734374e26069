"""The ILP's proposals for a mesh, lowered and simulated: mesh, pins -> Proposal -> Candidate.

A sum of costs cannot represent overlap. So if a device overlaps communication with compute, other
objectives make proposals too: they leave out most of the communication of parameters and gradients.
The simulator decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

from cost_models.machine import Cluster
from cost_models.memory import dtype_bytes
from planner.graph.layout import Mesh
from planner.lowering.lower import lowered
from planner.predict.depth import Shallow
from planner.predict.predict import Prediction, Run, prediction_of, run_of
from planner.program.program import Program
from planner.search.budget import Budget
from planner.solver.exact.ilp import solve
from planner.solver.exact.relaxed import solve_with_pairs
from planner.solver.problem.pairs import completed, peak_with_pairs
from planner.solver.problem.solution import Solution, not_found
from planner.solver.relax.peak import leanest
from planner.strategy.build_cost_table import build_cost_table
from planner.strategy.choices import Choices, read_choices
from planner.strategy.cost_table import CostTable
from planner.strategy.costing import Costing
from planner.strategy.pinned import pins_for
from planner.strategy.pins import Pin
from planner.strategy.problem import problem_of, with_memory
from planner.strategy.traced_model import Model
from planner.strategy.update_costs import total_gradient_bytes
from planner.workload.ask import Ask
from planner.workload.workload import Workload

__all__ = ["Candidate", "Proposal", "Proposer"]

#: The shares of parameters' and gradients' communication that the overlapping objectives leave out,
#: times the `overlap` of the device: inside a node, and over several. What hides depends on order,
#: which no sum of costs knows. Over a network less hides: llama3-8b and gpt2-xl on 64 H100 are 6 and
#: 4 % faster by 0.8. Inside a node 0.8 found nothing faster.
HIDDEN, HIDDEN_OVER_NODES = (0.9,), (0.8, 0.9)

#: The share of a search's time after which no plan is made to fit any more.
_FITTED = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """The ILP's answer for one mesh and objective."""

    mesh: Mesh
    overlapped: float
    table: CostTable
    solution: Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A proposal with its program and prediction. For a deep model, the program is that of a
    shallower one, and the prediction is extrapolated from such, until the candidate is `whole`. A
    whole one keeps the `run` that was simulated."""

    proposal: Proposal
    choices: Choices
    program: Program
    prediction: Prediction
    whole: bool = True
    name: str = ""  # a baseline's
    run: Run | None = field(default=None, compare=False, repr=False)

    @property
    def mesh(self) -> Mesh:
        return self.proposal.mesh

    def fits(self, capacity: float) -> bool:
        return self.prediction.total_memory_bytes <= capacity


class Proposer:
    """Makes proposals for one model on one cluster. Tables of costs and lowered programs are cached
    as long as the object lives."""

    def __init__(
        self,
        ask: Ask,
        model: Model,
        workload: Workload,
        cluster: Cluster,
        pins: tuple[Pin, ...],
        shallow: Shallow | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.budget = budget or Budget.unlimited()
        self.ask, self.shallow = ask, shallow
        self.model, self.workload, self.cluster, self.pins = model, workload, cluster, pins
        self.capacity = float(ask.allowed_memory(cluster.device))
        # By table, choice and whether the candidate is whole.
        self.lowered: dict[tuple[int, tuple[int, ...], bool], Candidate] = {}
        self.last: tuple[Hashable, Callable[[int], Program]] | None = None
        self.gradient_bytes = total_gradient_bytes(model.graph)
        self.costings: dict[tuple[int, ...], Costing] = {}
        self.made: dict[tuple[Mesh, tuple[Pin, ...], bool], list[Proposal]] = {}
        #: Whether some plan did not fit as it was and had to be made to fit.
        self.is_short_of_memory = False

    def proposals(
        self,
        mesh: Mesh,
        pins: tuple[Pin, ...] | None = None,
        *,
        last: bool = False,
        most_pairs: float = math.inf,
        budget: Budget | None = None,
    ) -> list[Proposal]:
        """The ILP's best plan of a mesh for each objective (only the last one if `last`), without a
        memory limit; the best found so far if the `budget` (by default the whole search's) ends
        first. Raises TooLarge if the mesh's table has over `most_pairs` pairs of strategies."""
        key = (mesh, self.pins if pins is None else pins, last)
        if key not in self.made:
            self.made[key] = self._proposals(mesh, key[1], last, most_pairs, budget or self.budget)
        return self.made[key]

    def _proposals(
        self, mesh: Mesh, pins: tuple[Pin, ...], last: bool, most_pairs: float, budget: Budget
    ) -> list[Proposal]:
        costing, allowed = self._costing(mesh), pins_for(self.model, mesh, pins)
        table = build_cost_table(self.model, costing, allowed, most_pairs=most_pairs)
        overlap = self.cluster.device.overlap
        parts = HIDDEN if self.cluster.num_nodes == 1 else HIDDEN_OVER_NODES
        hides = overlap > 0 and mesh.num_devices > 1
        shares = [0.0, *(part * overlap for part in parts)] if hides else [0.0]
        found: list[Proposal] = []
        shares = shares[-1:] if last else shares
        for overlapped in shares:
            guess = found[-1].solution.choice if found else None
            time = budget.one_of(len(shares) - len(found))
            solution = solve(
                problem_of(table, overlapped=overlapped),
                guess=guess,
                time_limit=time.left,
                stopped=time.over,
            )
            found.append(Proposal(mesh=mesh, overlapped=overlapped, table=table, solution=solution))
        return found

    def _costing(self, mesh: Mesh) -> Costing:
        """Costs under a mesh, sharing caches with other meshes of the same sizes."""
        if mesh.sizes not in self.costings:
            self.costings[mesh.sizes] = Costing(
                self.cluster,
                mesh.sizes,
                self.workload.optimizer,
                self.gradient_bytes,
                clip_norm=self.workload.clip_norm,
                clip_epsilon=self.workload.clip_epsilon,
                formats=self.workload.formats,
            )
        return self.costings[mesh.sizes]

    def bucketed(self, candidate: Candidate, size: int) -> Candidate:
        """The whole candidate with gradients reduced in buckets of `size` bytes."""
        choices = replace(candidate.choices, bucket=size)
        program = self._programs(candidate.proposal, choices)(size)
        run = run_of(program, self.cluster)
        return replace(
            candidate,
            choices=choices,
            program=program,
            prediction=prediction_of(run),
            run=run,
        )

    def _programs(self, proposal: Proposal, choices: Choices) -> Callable[[int], Program]:
        """Whole programs by bucket size. Only those of the last choices are cached, since a deep
        model has very many instructions."""
        key = (id(proposal.table), proposal.solution.choice, choices.recast)
        if self.last is None or self.last[0] != key:
            self.last = (key, lowered(self.model, proposal.mesh, choices, proposal.table.costing))
        return self.last[1]

    def candidate(self, proposal: Proposal, *, whole: bool = False) -> Candidate:
        """The proposal lowered and simulated; only once if two objectives choose the same. A deep
        model is lowered whole only if `whole`. Parameters are cast once per step, or twice if the
        plan does not fit otherwise."""
        whole = whole or self.shallow is None
        key = (id(proposal.table), proposal.solution.choice, whole)
        if key not in self.lowered:
            found = self._simulated(proposal, whole, recast=False)
            over = found.prediction.total_memory_bytes - self.capacity
            if self.model.recastable and 0 < over <= found.prediction.memory_bytes["gathered"]:
                again = self._simulated(proposal, whole, recast=True)
                found = min(found, again, key=lambda c: c.prediction.total_memory_bytes)
            self.lowered[key] = found
        return replace(self.lowered[key], proposal=proposal)

    def _simulated(self, proposal: Proposal, whole: bool, *, recast: bool) -> Candidate:
        table, choice = proposal.table, proposal.solution.choice
        choices = replace(read_choices(table, choice), recast=recast)
        run: Run | None = None
        if self.shallow is None or whole:
            program = self._programs(proposal, choices)(choices.bucket)
            run = run_of(program, self.cluster)
            prediction = prediction_of(run)
        else:
            program, prediction = self.shallow.predict(
                table, choice, proposal.mesh, self.cluster, recast=recast
            )
        return Candidate(
            proposal=proposal,
            choices=choices,
            program=program,
            prediction=prediction,
            whole=whole,
            run=run,
        )

    def fitting(self, candidate: Candidate) -> Candidate:
        """The candidate if it fits the memory, else the best plan of its mesh that does (or the
        leanest if none does)."""
        if candidate.fits(self.capacity):
            return candidate
        return self._made_to_fit(candidate.proposal, whole=candidate.whole, name=candidate.name)

    def fitted(self, proposal: Proposal) -> tuple[Candidate, bool]:
        """The `fitting` candidate of a proposal, and whether it had to be made to fit. A hopeless
        proposal is not simulated first."""
        if self.is_hopeless(proposal):
            return self._made_to_fit(proposal), True
        candidate = self.candidate(proposal)
        return self.fitting(candidate), not candidate.fits(self.capacity)

    def is_hopeless(self, proposal: Proposal) -> bool:
        """Whether the parameters and the optimizer's state alone exceed the memory."""
        table, graph, held = proposal.table, self.model.graph, 0
        for number, members in zip(table.parameter_of, self.model.ties.parameters_of, strict=True):
            value = graph.values[graph.parameters[members[0]].value]
            strategy = table.parameter_strategies[number][proposal.solution.choice[number]]
            parts = table.costing.updates.parameter_bytes(
                table.model.dims.flat(value.id), dtype_bytes(value.dtype), value.dtype, strategy
            )
            held += len(members) * sum(parts.values())
        return held > self.capacity

    def _made_to_fit(self, proposal: Proposal, *, whole: bool = False, name: str = "") -> Candidate:
        """The best plan of the proposal's mesh that fits. The problem's limit is reduced as needed,
        because a lowered program may hold more than the problem accounts for."""
        self.is_short_of_memory = True
        limit = self.capacity
        for _ in range(4):
            time, table = self.budget.until(_FITTED), proposal.table
            problem, pairs = with_memory(
                table, problem_of(table, overlapped=proposal.overlapped), limit
            )
            # nodes of pair usages, which differ with the limit, follow the table's own nodes
            guess = proposal.solution.choice[: len(table.costs)]
            solution = solve_with_pairs(
                problem, pairs, guess=guess, time_limit=time.left, stopped=time.over
            )
            # It does not fit by the problem's memory: the leanest choice may still fit when
            # lowered.
            none = solution.status in ("infeasible", "unknown")
            candidate = replace(
                self.candidate(replace(proposal, solution=solution), whole=whole), name=name
            )
            if none or time.over() or candidate.fits(self.capacity):
                break
            held = peak_with_pairs(problem, pairs, solution.choice)
            less = min(0.99, self.capacity / candidate.prediction.total_memory_bytes)
            limit *= less
            while 0.0 < held <= limit:  # else the solver would find the same choice again
                limit *= less
            proposal = candidate.proposal
        return candidate

    def lean(self, mesh: Mesh) -> Candidate:
        """A plan of a mesh that fits the memory, or a lean one, in well under a second, without
        regard to its step time."""
        table = build_cost_table(
            self.model, self._costing(mesh), pins_for(self.model, mesh, self.pins)
        )
        limit = self.capacity
        for _ in range(3):
            problem = problem_of(table, limit=limit)
            lean = leanest(problem, None)
            if lean.choice is None:  # every choice read off is forbidden
                lean = leanest(
                    problem,
                    completed(
                        problem, solve(problem_of(table), time_limit=self.budget.left).choice
                    ),
                )
            assert lean.choice is not None
            solution = not_found(
                problem, lean.choice, began=0.0, bound=-math.inf, lean=lean.peak, known=False
            )
            found = self.candidate(
                Proposal(mesh=mesh, overlapped=0.0, table=table, solution=solution)
            )
            if found.fits(self.capacity) or lean.peak > limit:
                break
            limit *= min(0.99, self.capacity / found.prediction.total_memory_bytes)
        return found
