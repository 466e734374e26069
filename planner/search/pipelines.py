"""Pipelines: a model in stages, each split over devices of its own, in the order of a schedule.

Spec (places, mesh of a stage, microbatches, schedule) -> PipelineCandidate, lowered and simulated.
Stages that are the same up to the names of their layers are solved and simulated once.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from cost_models.errors import NoPlan
from cost_models.machine import Cluster
from planner.dims.subdims import SubDims
from planner.graph.graph import Graph
from planner.lowering.bodies import TOTALS_FIRST
from planner.lowering.lower import lower
from planner.lowering.pipeline import ChosenStage, actions_of, first_ranks, transfers_of
from planner.lowering.stage_bodies import SHARES, UPDATE, named_actions
from planner.plans.models import dims_of
from planner.plans.stage_models import (
    Cuttable,
    StageModels,
    cuttable,
    stage_models,
    structure_of,
)
from planner.predict.footprint import memory_of_actions
from planner.predict.places import in_flight
from planner.predict.predict import Prediction
from planner.predict.stages import (
    PipelinePrediction,
    StagePrediction,
    flow_of,
    stage_prediction,
    timed_pipeline,
)
from planner.program.actions import Action
from planner.program.program import Program
from planner.schedules.registry import scheduled
from planner.schedules.schedule import Schedule
from planner.search.budget import Budget
from planner.search.fitting import fitting
from planner.search.pipeline_spec import Spec
from planner.search.proposals import Candidate, Proposal, Proposer
from planner.search.stage_costs import UnitCosts, balanced, cuts, per_unit
from planner.search.transfer_times import transfer_seconds
from planner.stages.pipeline import Pipeline
from planner.strategy.choices import read_choices
from planner.strategy.pinned import matched_nodes, matching
from planner.strategy.pins import Pin
from planner.trace.traced import Traced
from planner.workload.ask import Ask

__all__ = [
    "PipelineCandidate",
    "Pipelines",
    "Spec",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineCandidate:
    """A pipeline with its prediction. `begins` are the units at which stages begin."""

    spec: Spec
    ask: Ask
    model: Cuttable
    begins: tuple[int, ...]
    stages: tuple[ChosenStage, ...]
    pipeline: Pipeline
    prediction: PipelinePrediction
    capacity: float = field(default=math.inf)

    @property
    def fits(self) -> bool:
        return max(self.prediction.place_bytes) <= self.capacity


class Pipelines:
    """Makes candidates for one model on one cluster."""

    def __init__(
        self, ask: Ask, cluster: Cluster, pins: tuple[Pin, ...], budget: Budget, traced: Traced
    ) -> None:
        self.ask, self.cluster, self.pins = ask, cluster, pins
        self.budget, self.traced = budget, traced
        self.capacity = float(ask.allowed_memory(cluster.device))
        self._cuttable: dict[int, Cuttable] = {}
        self._begins: dict[Hashable, tuple[int, ...]] = {}
        self.solved: dict[Hashable, _Solved] = {}

    def model(self, microbatches: int) -> Cuttable:
        """The model in that many microbatches. Raises BadValue and CannotSplit."""
        if microbatches not in self._cuttable:
            self._cuttable[microbatches] = cuttable(
                self.traced, replace(self.ask, microbatches=microbatches), self.dims
            )
        return self._cuttable[microbatches]

    @cached_property
    def dims(self) -> SubDims:
        """The sub-dims of the traced graph."""
        return dims_of(self.traced.graph)

    @cached_property
    def costs(self) -> UnitCosts:
        """What the units of the whole batch cost."""
        whole = self.model(1)
        return UnitCosts(
            model=whole, cluster=self.cluster, optimizer=self.traced.workload.optimizer
        )

    def begins(self, spec: Spec, schedule: Schedule) -> tuple[int, ...]:
        """Where the stages begin, by the seconds of units on the devices of each stage."""
        model, stages = self.model(spec.microbatches), schedule.num_stages
        devices = tuple(spec.meshes[place].num_devices for place in schedule.places)
        key = (len(model.units), devices, spec.microbatches)
        if key not in self._begins:
            counts = () if spec.is_uniform else devices
            seconds, *runs = (
                per_unit(model, self.costs.model, one)
                for one in (
                    self.costs.both(spec.microbatches),
                    *(self.costs.on(spec.microbatches, count) for count in counts),
                )
            )
            self._begins[key] = balanced(seconds, stages, cuts(model.units, stages), runs)
        return self._begins[key]

    def candidate(
        self, spec: Spec, begins: Sequence[int] | None = None, *, below: float = math.inf
    ) -> PipelineCandidate:
        """The pipeline, its stages each at their best within the memory; the leanest if they do not
        fit. If even without a memory limit a step takes `below` seconds or more, what holds too much
        is not made to fit. Raises NoPlan, BadValue, CannotCut and CannotSplit for what cannot be."""
        if spec.num_devices > self.cluster.num_devices:
            raise NoPlan(
                f"{spec.places} stages on {spec.counts} need {spec.num_devices}, there are "
                f"{self.cluster.num_devices}"
            )
        schedule = spec.given or scheduled(
            spec.schedule, spec.places, spec.microbatches, spec.chunks
        )
        at = tuple(begins or self.begins(spec, schedule))
        model = self.model(spec.microbatches)
        cut = stage_models(model, at)
        made = _Candidate(self, spec, schedule, at, cut)
        free = made.made(math.inf)
        if free.fits or free.prediction.step_time_s >= below:
            return free
        return made.made(self.capacity)


class _Candidate:
    def __init__(
        self,
        given: Pipelines,
        spec: Spec,
        schedule: Schedule,
        begins: tuple[int, ...],
        cut: StageModels,
    ) -> None:
        self.given, self.spec, self.schedule = given, spec, schedule
        self.begins, self.cut = begins, cut
        self.ask = replace(given.ask, microbatches=spec.microbatches)
        self.meshes = [spec.meshes[place] for place in schedule.places]
        self.firsts = first_ranks([mesh.num_devices for mesh in self.meshes], schedule)
        self.clusters = [
            given.cluster.slice(self.firsts[place], mesh.num_devices)
            for place, mesh in zip(schedule.places, self.meshes, strict=True)
        ]

    def made(self, capacity: float) -> PipelineCandidate:
        """The candidate: every stage within the memory that its place has for it."""
        found = [self._solved(stage, capacity) for stage in range(len(self.cut.models))]
        programs = [self._program(stage, one) for stage, one in enumerate(found)]
        pipeline = Pipeline(
            programs=tuple(programs),
            schedule=self.schedule,
            transfers=transfers_of(programs, self.cut.crossings),
            firsts=self.firsts,
        )
        predictions = [one.stage for one in found]
        return PipelineCandidate(
            spec=self.spec,
            ask=self.ask,
            model=self.given.model(self.spec.microbatches),
            begins=self.begins,
            stages=tuple(
                ChosenStage(
                    model=model,
                    mesh=mesh,
                    choices=one.candidate.choices,
                    costing=one.candidate.proposal.table.costing,
                )
                for model, mesh, one in zip(self.cut.models, self.meshes, found, strict=True)
            ),
            pipeline=pipeline,
            prediction=timed_pipeline(
                predictions,
                self.schedule,
                transfer_seconds(pipeline, self.given.cluster),
                flow_of(pipeline),
                pipeline,
            ),
            capacity=self.given.capacity,
        )

    def _program(self, stage: int, one: _Solved) -> Program:
        """The stage's program: that of a stage of the same structure names other crossings."""
        graph, made = self.cut.models[stage].graph, one.candidate.program
        if one.graph is graph:
            return made
        sent = dict(zip((n for n, _ in one.graph.sent), (n for n, _ in graph.sent), strict=True))
        came = dict(
            zip((n for n, _ in one.graph.received), (n for n, _ in graph.received), strict=True)
        )
        return replace(
            made,
            sent=tuple(replace(s, crossing=sent[s.crossing]) for s in made.sent),
            inputs=tuple(
                replace(s, name=str(came[int(s.name)])) if s.kind == "received" else s
                for s in made.inputs
            ),
        )

    def _solved(self, stage: int, capacity: float) -> _Solved:
        """The best choices of a stage within the memory that its place has for it. Stages of the
        same structure share those without a limit; what they hold depends on their actions."""
        model, actions = self.cut.models[stage], actions_of(self.schedule, stage)
        share = capacity / len(self.schedule.stages_at(self.schedule.places[stage]))
        names = frozenset(a.body for a in named_actions(actions, totals=False, ends=()))
        pinned = matched_nodes(model, self.given.pins)
        shared = (
            structure_of(model.graph),
            self.meshes[stage],
            self.clusters[stage],
            names,
            pinned,
        )
        if shared not in self.given.solved:
            self.given.solved[shared] = self._best(stage, actions, math.inf)
        free = self.given.solved[shared]
        own = free.with_actions(actions)
        if own.stage.peak_bytes <= share:
            return own
        key = (shared, tuple((action.body, action.microbatch) for action in actions), share)
        if key not in self.given.solved:
            self.given.solved[key] = self._best(stage, actions, share)
        return self.given.solved[key]

    def _best(self, stage: int, actions: tuple[Action, ...], limit: float) -> _Solved:
        """The best choices of a stage within a limit."""
        model = replace(self.cut.models[stage], in_flight=in_flight(actions))
        proposer = StageProposer(
            self.ask,
            model,
            self.given.traced.workload,
            self.clusters[stage],
            matching(model, self.given.pins),
            budget=self.given.budget,
        )
        proposer.actions, proposer.capacity = actions, limit
        found = [
            fitting(proposer, proposer.candidate(proposal))
            for proposal in proposer.proposals(self.meshes[stage], last=True)
        ]
        best = min(found, key=lambda one: _rank(one, limit))
        return _Solved(
            candidate=best, stage=proposer.predicted[id(best.program)], graph=model.graph
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solved:
    """A stage's choices with its program and prediction, and the graph that they were made for."""

    candidate: Candidate
    stage: StagePrediction
    graph: Graph

    def with_actions(self, actions: tuple[Action, ...]) -> _Solved:
        """The same stage in another order of the same actions."""
        one = self.candidate
        bodies = one.program.bodies
        named = named_actions(
            actions,
            totals=TOTALS_FIRST in bodies,
            ends=[name for name in (SHARES, UPDATE) if name in bodies],
        )
        if named == one.program.actions:
            return self
        program = replace(one.program, actions=named)
        return replace(
            self,
            candidate=replace(one, program=program),
            stage=replace(self.stage, memory=memory_of_actions(program)),
        )


class StageProposer(Proposer):
    """Proposals for one stage, which runs `actions`: its time is that of its own actions, its memory
    that with all microbatches in flight."""

    actions: tuple[Action, ...] = ()

    @cached_property
    def predicted(self) -> dict[int, StagePrediction]:
        """Predictions by the id of the program, which lives as long as its candidate."""
        return {}

    def _simulated(self, proposal: Proposal, whole: bool, *, recast: bool) -> Candidate:
        del whole  # a stage is lowered whole
        choices = replace(read_choices(proposal.table, proposal.solution.choice), recast=recast)
        program = lower(
            self.model,
            proposal.mesh,
            choices,
            proposal.table.costing,
            actions=self.actions,
        )
        found = stage_prediction(program, self.cluster)
        self.predicted[id(program)] = found
        times = [found.bodies[action.body] for action in program.actions]
        return Candidate(
            proposal=proposal,
            choices=choices,
            program=program,
            prediction=Prediction(
                step_time_s=sum(one.seconds for one in times),
                compute_time_s=sum(one.compute for one in times),
                exposed_communication_time_s=sum(one.exposed_communication for one in times),
                idle_time_s=0.0,
                memory_bytes=found.memory_bytes,
            ),
        )


def _rank(one: Candidate, limit: float) -> tuple[bool, float]:
    held = one.prediction.total_memory_bytes
    over = held > limit
    return over, held if over else one.prediction.step_time_s
