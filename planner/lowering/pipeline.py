"""Lowers the stages of a pipeline: one program for each, and what crosses between them.

Stages with their choices, schedule -> Pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.graph.layout import Mesh
from planner.lowering.lower import lower
from planner.program.actions import Action
from planner.program.program import Program
from planner.schedules.schedule import Schedule
from planner.stages import Crossing
from planner.stages.pipeline import Piece, Pipeline, Transfer
from planner.strategy.choices import Choices
from planner.strategy.costing import Costing
from planner.strategy.traced_model import Model

__all__ = ["ChosenStage", "actions_of", "first_ranks", "lower_pipeline", "transfers_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenStage:
    """A stage and how it is split."""

    model: Model
    mesh: Mesh
    choices: Choices
    costing: Costing


def lower_pipeline(
    stages: Sequence[ChosenStage],
    crossings: Sequence[Crossing],
    schedule: Schedule,
    *,
    rank: int = 0,
) -> Pipeline:
    """The pipeline as `rank` runs it: the programs of its own stages are those of its place in
    their meshes, all others those of the first rank."""
    firsts = first_ranks([stage.mesh.num_devices for stage in stages], schedule)
    place = max(p for p, first in enumerate(firsts) if first <= rank)
    programs = []
    for number, stage in enumerate(stages):
        mine = schedule.places[number] == place
        local = rank - firsts[place] if mine else 0
        programs.append(
            lower(
                stage.model,
                stage.mesh,
                stage.choices,
                stage.costing,
                rank=local,
                actions=actions_of(schedule, number),
            )
        )
    return Pipeline(
        programs=tuple(programs),
        schedule=schedule,
        transfers=transfers_of(programs, crossings),
        firsts=firsts,
    )


def actions_of(schedule: Schedule, stage: int) -> tuple[Action, ...]:
    """A stage's actions, in the order of its place."""
    order = schedule.orders[schedule.places[stage]]
    return tuple(action for action in order if action.stage == stage)


def transfers_of(
    programs: Sequence[Program], crossings: Sequence[Crossing]
) -> tuple[Transfer, ...]:
    """What crosses, with the pieces that both ends hold."""
    sent: Mapping[int, Piece] = {
        one.crossing: Piece(subshape=one.subshape, layout=one.layout)
        for program in programs
        for one in program.sent
    }
    received = {
        int(state.name): Piece(subshape=state.subshape, layout=state.layout)
        for program in programs
        for state in program.inputs
        if state.kind == "received"
    }
    return tuple(
        Transfer(
            number=crossing.number,
            source=crossing.source,
            target=crossing.target,
            phase=crossing.phase,
            dtype=crossing.dtype,
            sent=sent[crossing.number],
            received=received[crossing.number],
        )
        for crossing in crossings
    )


def first_ranks(sizes: Sequence[int], schedule: Schedule) -> tuple[int, ...]:
    """The first rank of every place; `sizes` are the numbers of devices of the stages. Stages of one
    place share its devices."""
    out, at = [], 0
    for place in range(schedule.num_places):
        found = {sizes[stage] for stage in schedule.stages_at(place)}
        assert len(found) == 1, (place, found)
        out.append(at)
        at += found.pop()
    return tuple(out)
