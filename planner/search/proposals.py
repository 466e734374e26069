"""The ILP's proposals for a mesh, lowered and simulated: mesh, pins -> Proposal -> Candidate.

A sum of costs cannot represent overlap. So if a device overlaps communication with compute, other
objectives make proposals too: they leave out most of the communication of parameters and gradients.
The simulator decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property

from cost_models.machine import Cluster
from cost_models.memory import dtype_bytes
from planner.graph.layout import Mesh
from planner.lowering.lower import lowered
from planner.predict.depth import Shallow
from planner.predict.predict import Prediction, Run, prediction_of, run_of
from planner.program.program import Program
from planner.search.budget import Budget
from planner.solver.exact.ilp import solve
from planner.solver.problem.pairs import PairUsage
from planner.solver.problem.problem import Usage
from planner.solver.problem.solution import Solution
from planner.strategy.build_cost_table import build_cost_table
from planner.strategy.choices import Choices, read_choices
from planner.strategy.cost_table import CostTable
from planner.strategy.costing import Costing
from planner.strategy.pinned import pins_for
from planner.strategy.pins import Pin
from planner.strategy.problem import problem_of
from planner.strategy.recompute import Recompute
from planner.strategy.strategies import SECOND
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """The ILP's answer for one mesh, under some pins, and one objective."""

    mesh: Mesh
    overlapped: float
    table: CostTable
    solution: Solution
    pins: tuple[Pin, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A proposal with its program and prediction. For a deep model, the program is that of a
    shallower one, and the prediction is extrapolated from such, until the candidate is `whole`. A
    whole one keeps the `run` that was simulated. `by_layer`: modes differ between like layers."""

    proposal: Proposal
    choices: Choices
    program: Program
    prediction: Prediction
    whole: bool = True
    by_layer: bool = False
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
        self.with_modes: dict[tuple[Mesh, tuple[Pin, ...]], CostTable] = {}
        #: By id of a table, which is kept with it: what its choices hold, and its pairs of choices.
        self.held: dict[int, tuple[CostTable, tuple[Usage, ...], tuple[PairUsage, ...]]] = {}

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
        table = self.table(mesh, pins, most_pairs=most_pairs)
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
            found.append(
                Proposal(
                    mesh=mesh, pins=pins, overlapped=overlapped, table=table, solution=solution
                )
            )
        return found

    def table(
        self,
        mesh: Mesh,
        pins: tuple[Pin, ...],
        *,
        most_pairs: float = math.inf,
        modes: bool = False,
    ) -> CostTable:
        """The cost table of a mesh under some pins; if `modes`, the one in which ops may run again
        without a pin, which is made once."""
        key, allowed = (mesh, pins), pins_for(self.model, mesh, pins)
        costing = self._costing(mesh)
        if not modes:
            pinned = any(allowed.again.values())
            return build_cost_table(
                self.model,
                costing,
                allowed,
                most_pairs=most_pairs,
                recompute=self.recompute if pinned else None,
                free=False,
            )
        if key not in self.with_modes:
            self.with_modes[key] = build_cost_table(
                self.model, costing, allowed, most_pairs=most_pairs, recompute=self.recompute
            )
        return self.with_modes[key]

    def table_across(self, mesh: Mesh, *, most_pairs: float) -> CostTable:
        """The cost table of a mesh in which also what one layer leaves to another may be made again,
        for bounds on plans that do so."""
        return build_cost_table(
            self.model,
            self._costing(mesh),
            pins_for(self.model, mesh, self.pins),
            most_pairs=most_pairs,
            recompute=Recompute(self.model, across=True),
        )

    @cached_property
    def recompute(self) -> Recompute:
        """What may run again."""
        return Recompute(self.model)

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
        return self.with_choices(candidate, replace(candidate.choices, bucket=size))

    def with_choices(self, candidate: Candidate, choices: Choices) -> Candidate:
        """The whole candidate with other choices on the same mesh."""
        program = self._programs(candidate.proposal, choices)(choices.bucket)
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
        again = tuple((n, s.mode) for n, s in choices.strategies.items() if s.mode in SECOND)
        key = (id(proposal.table), proposal.solution.choice, choices.recast, again)
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
            most = min(self._bytes_of_casts, found.prediction.memory_bytes["gathered"])
            if 0 < over <= most:
                again = self._simulated(proposal, whole, recast=True)
                found = min(found, again, key=lambda c: c.prediction.total_memory_bytes)
            self.lowered[key] = found
        return replace(self.lowered[key], proposal=proposal)

    @cached_property
    def _bytes_of_casts(self) -> int:
        """The bytes of all parameters cast to a shorter format, which may be cast again."""
        values = self.model.graph.values
        return sum(
            values[cast].numel * dtype_bytes(values[cast].dtype) for cast in self.model.recastable
        )

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
