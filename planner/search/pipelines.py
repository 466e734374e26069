"""Pipelines: a model in stages, each split over devices of its own, in the order of a schedule.

Spec (places, mesh of a stage, microbatches, schedule) -> PipelineCandidate, lowered and simulated.
Stages that are the same up to the names of their layers are solved and simulated once.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

from cost_models.errors import NoPlan
from cost_models.machine import Cluster
from cost_models.memory import dtype_bytes
from cost_models.point_to_point import send_time
from planner.graph.graph import Graph, map_refs
from planner.graph.layout import Mesh
from planner.lowering.lower import lower
from planner.lowering.pipeline import ChosenStage, actions_of, first_ranks, transfers_of
from planner.plans.stage_models import Cuttable, StageModels, cuttable, stage_models
from planner.predict.stages import (
    PipelinePrediction,
    StagePrediction,
    flow_of,
    stage_prediction,
    timed_pipeline,
)
from planner.program.program import Program
from planner.schedules.registry import scheduled
from planner.schedules.schedule import Schedule
from planner.search.budget import Budget
from planner.search.fitting import fitting
from planner.search.proposals import Candidate, Proposer
from planner.search.stage_costs import balanced, unit_seconds
from planner.stages.pipeline import Pipeline, parcels
from planner.strategy.pins import Pin
from planner.trace.traced import Traced
from planner.workload.ask import Ask

__all__ = ["PipelineCandidate", "Pipelines", "Spec"]

#: How often the memory that a stage's choices may take is lowered.
_ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a pipeline is to be: `places` in a row, each with the devices of `mesh`; `chunks` stages
    a place, 0 for as many as the schedule has if nobody says."""

    places: int
    mesh: Mesh
    microbatches: int
    schedule: str = "1f1b"
    chunks: int = 0

    @property
    def num_devices(self) -> int:
        return self.places * self.mesh.num_devices


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineCandidate:
    """A pipeline with its prediction. `begins` are the units at which stages begin."""

    spec: Spec
    ask: Ask
    model: Cuttable
    begins: tuple[int, ...]
    stages: tuple[ChosenStage, ...]
    found: tuple[Candidate, ...]
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
        self._seconds: dict[int, tuple[float, ...]] = {}
        self._solved: dict[Hashable, Candidate] = {}
        self._predicted: dict[Hashable, tuple[Program, StagePrediction]] = {}

    def model(self, microbatches: int) -> Cuttable:
        """The model in that many microbatches. Raises BadValue and CannotSplit."""
        if microbatches not in self._cuttable:
            self._cuttable[microbatches] = cuttable(
                self.traced, replace(self.ask, microbatches=microbatches)
            )
        return self._cuttable[microbatches]

    def seconds(self, microbatches: int) -> tuple[float, ...]:
        """The seconds of the model's units."""
        if microbatches not in self._seconds:
            self._seconds[microbatches] = unit_seconds(
                self.model(microbatches), self.cluster, self.traced.workload.optimizer
            )
        return self._seconds[microbatches]

    def begins(self, spec: Spec, stages: int) -> tuple[int, ...]:
        """Where the stages begin, by the seconds of units."""
        units = self.model(spec.microbatches).units
        return balanced(self.seconds(spec.microbatches), stages, _cuts(units, stages))

    def candidate(self, spec: Spec, begins: Sequence[int] | None = None) -> PipelineCandidate:
        """The pipeline, its stages each at their best within the memory; the leanest if they do not
        fit. Raises NoPlan, BadValue, CannotCut and CannotSplit for what cannot be."""
        if spec.num_devices > self.cluster.num_devices:
            raise NoPlan(
                f"{spec.places} stages on {spec.mesh.num_devices} devices each need "
                f"{spec.num_devices}, there are {self.cluster.num_devices}"
            )
        schedule = scheduled(spec.schedule, spec.places, spec.microbatches, spec.chunks)
        at = tuple(begins or self.begins(spec, schedule.num_stages))
        model = self.model(spec.microbatches)
        cut = stage_models(model, at)
        return _Candidate(self, spec, schedule, at, cut).made()


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
        sizes = [spec.mesh.num_devices] * len(cut.models)
        self.firsts = first_ranks(sizes, schedule)
        self.clusters = [
            given.cluster.slice(self.firsts[schedule.places[s]], spec.mesh.num_devices)
            for s in range(len(cut.models))
        ]
        self.proposers = [
            Proposer(
                self.ask,
                model,
                given.traced.workload,
                cluster,
                given.pins,
                budget=given.budget,
            )
            for model, cluster in zip(cut.models, self.clusters, strict=True)
        ]

    def made(self) -> PipelineCandidate:
        """The candidate: stages are solved without a limit; those of places that then hold too much
        are solved again within less and less."""
        capacity = self.given.capacity
        limits = [capacity] * len(self.cut.models)
        found = [self._solved(stage, limits[stage]) for stage in range(len(limits))]
        best = self._with(found)
        for _ in range(_ROUNDS):
            over = [
                place for place, held in enumerate(best.prediction.place_bytes) if held > capacity
            ]
            if not over or self.given.budget.over():
                break
            for place in over:
                held = best.prediction.place_bytes[place]
                for stage in self.schedule.stages_at(place):
                    own = found[stage].prediction.total_memory_bytes
                    limits[stage] = min(limits[stage], own) * max(0.3, capacity / held) * 0.995
                    found[stage] = self._solved(stage, limits[stage])
            new = self._with(found)
            if new.prediction.place_bytes == best.prediction.place_bytes:
                break
            best = new
        return best

    def _with(self, found: Sequence[Candidate]) -> PipelineCandidate:
        chosen = [
            ChosenStage(
                model=model,
                mesh=self.spec.mesh,
                choices=one.choices,
                costing=one.proposal.table.costing,
            )
            for model, one in zip(self.cut.models, found, strict=True)
        ]
        programs, predictions = [], []
        for stage, one in enumerate(chosen):
            program, prediction = self._lowered(stage, one, found[stage])
            programs.append(program)
            predictions.append(prediction)
        pipeline = Pipeline(
            programs=tuple(programs),
            schedule=self.schedule,
            transfers=transfers_of(programs, self.cut.crossings),
            firsts=self.firsts,
        )
        return PipelineCandidate(
            spec=self.spec,
            ask=self.ask,
            model=self.given.model(self.spec.microbatches),
            begins=self.begins,
            stages=tuple(chosen),
            found=tuple(found),
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

    def _lowered(
        self, stage: int, one: ChosenStage, found: Candidate
    ) -> tuple[Program, StagePrediction]:
        program = lower(
            one.model,
            one.mesh,
            one.choices,
            one.costing,
            actions=actions_of(self.schedule, stage),
        )
        key = (
            _structure(one.model.graph),
            one.mesh.sizes,
            id(found.choices),
            tuple((a.body, a.microbatch) for a in program.actions),
            _place_in_node(self.clusters[stage]),
        )
        if key not in self.given._predicted:
            self.given._predicted[key] = program, stage_prediction(program, self.clusters[stage])
        return program, self.given._predicted[key][1]

    def _solved(self, stage: int, limit: float) -> Candidate:
        """The best choices of a stage alone, of which one microbatch is in flight, within a
        limit."""
        model, proposer = self.cut.models[stage], self.proposers[stage]
        key = (
            _structure(model.graph),
            self.spec.mesh,
            _place_in_node(self.clusters[stage]),
            limit,
        )
        if key not in self.given._solved:
            proposer.capacity = limit
            proposals = proposer.proposals(self.spec.mesh)
            best: Candidate | None = None
            for proposal in proposals:
                one = fitting(proposer, proposer.candidate(proposal, whole=True))
                if best is None or _rank(one, limit) < _rank(best, limit):
                    best = one
            assert best is not None
            self.given._solved[key] = best
        return self.given._solved[key]


def _rank(one: Candidate, limit: float) -> tuple[bool, float]:
    held = one.prediction.total_memory_bytes
    over = held > limit
    return over, held if over else one.prediction.step_time_s


def _place_in_node(cluster: Cluster) -> Hashable:
    """What of a slice's place matters to the costs within it."""
    return cluster


def _cuts(units: Sequence[object], stages: int) -> list[int]:
    """The units at which a stage may begin."""
    return list(range(len(units)))


def _structure(graph: Graph) -> Hashable:
    """All of a graph but the names of its layers."""

    def plain(args: object) -> Hashable:
        return map_refs(args, lambda v: ("value", v))  # type: ignore[no-any-return]

    return hash(
        (
            tuple((v.shape, v.dtype, v.kind) for v in graph.values),
            tuple(
                (n.op, repr(plain((n.args, n.kwargs))), n.results, n.phase, n.checkpoint)
                for n in graph.nodes
            ),
            tuple((p.value, p.gradient) for p in graph.parameters),
            graph.loss,
            graph.reported,
            graph.updates,
            tuple(v for _, v in graph.sent),
            tuple(v for _, v in graph.received),
            graph.samples,
            graph.copies,
        )
    )


def transfer_seconds(pipeline: Pipeline, cluster: Cluster) -> dict[tuple[int, int], float]:
    """Seconds in which what one stage sends to another for a microbatch arrives: all parcels of all
    its ranks at once, over the links that they cross."""
    found: dict[tuple[int, int], float] = {}
    for transfer in pipeline.transfers:
        if transfer.phase == "update":
            continue
        ends = (transfer.source, transfer.target)
        first, then = map(pipeline.first_rank, ends)
        meshes = [pipeline.programs[stage].mesh for stage in ends]
        pairs, most = [], 0
        for parcel in parcels(transfer, *meshes):
            sender, receiver = first + parcel.sender, then + parcel.receiver
            if sender != receiver:
                pairs.append((sender, receiver))
                most = max(most, parcel.numel * dtype_bytes(transfer.dtype))
        if pairs:
            seconds = send_time(cluster, tuple(pairs), float(most))
            found[ends] = found.get(ends, 0.0) + seconds
    return found
