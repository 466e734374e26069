"""Assembles the `Program` from the instructions in order of need: their final order, the copies'
seconds, joined biases, and the values held when a step begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from cost_models.machine import Cluster
from planner.graph.checking import checked
from planner.graph.layout import local_shape
from planner.lowering.bodies import Bodies
from planner.lowering.copying import timed
from planner.lowering.draft import Draft
from planner.lowering.join_biases import join_biases
from planner.lowering.local_shapes import LocalShapes
from planner.lowering.order import finish
from planner.lowering.stage_bodies import StageEnds
from planner.program.check import faults
from planner.program.check_order import order_faults
from planner.program.check_program import program_faults
from planner.program.program import (
    InputState,
    Instruction,
    ParameterState,
    Program,
    Sent,
    Update,
    freeing,
)
from planner.strategy.costing import Costing

__all__ = ["Needed", "assemble"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """The parts of a program that do not depend on the order of its instructions, and the
    constraints on that order. `held` are there before the step, `kept` after it too."""

    states: tuple[ParameterState, ...]
    inputs: tuple[InputState, ...]
    loss: int | None
    reported: tuple[tuple[str, int], ...]
    stores: tuple[tuple[int, int], ...]
    held: frozenset[int]
    kept: frozenset[int]
    trained: frozenset[int]
    initial_bytes: dict[str, int]
    stored_by_all: frozenset[int] = frozenset()
    sent: tuple[Sent, ...] = ()
    squares: tuple[int, int] | None = None
    ends: StageEnds | None = None


def assemble(
    needed: Needed,
    draft: Draft,
    bodies: Bodies,
    local: LocalShapes,
    bucket: int,
    *,
    timing: Costing,
    overlaps: bool,
) -> Program:
    """The program with buckets of `bucket` bytes, checked; `overlaps` says whether the device
    that was planned for runs large messages beside compute."""
    backend = _backend(timing.cluster)
    ordered: dict[str, tuple[Instruction, ...]] = {}
    for name, body in bodies.by_name.items():
        instructions = finish(
            body.instructions,
            draft.gathers,
            body.alias,
            set(body.kept),
            timing,
            local.mesh,
            bucket,
            needed.trained,
            overlaps=overlaps,
            buffered=backend != "shared",
        )
        ordered[name] = timed(_ending(instructions, body.ends), timing)
        checked("freeing", partial(order_faults, ordered[name], local.mesh))
    shapes = _shapes((one for body in ordered.values() for one in body), needed, local)
    program = Program(
        mesh=local.mesh,
        bodies={name: join_biases(body, shapes) for name, body in ordered.items()},
        actions=bodies.actions,
        carried=bodies.carried,
        stashed=bodies.stashed,
        sent=needed.sent,
        squares=needed.squares,
        parameters=needed.states,
        inputs=needed.inputs,
        loss=needed.loss,
        value_bytes=draft.value_bytes | dict.fromkeys(bodies.lying, 0),
        initial_bytes=needed.initial_bytes,
        stores=needed.stores,
        stored_by_all=needed.stored_by_all,
        reported=needed.reported,
        rank=local.rank if local.differs else None,
        backend=backend,
    )
    wrong = faults(program)
    assert not wrong, wrong
    checked("program", lambda: program_faults(program))
    return program


def _ending(instructions: tuple[Instruction, ...], ends: frozenset[int]) -> tuple[Instruction, ...]:
    """The instructions, the last of which also frees the values `ends`."""
    if not ends:
        return instructions
    *rest, last = instructions
    return (*rest, freeing(last, (*last.frees, *sorted(ends))))


def _shapes(
    instructions: Iterable[Instruction], needed: Needed, local: LocalShapes
) -> dict[int, tuple[int, ...]]:
    """The local shapes of all values."""
    sizes, place, states = local.mesh.sizes, local.place, needed.states
    shapes = {s.value: local_shape(s.subshape, s.stored, sizes, place) for s in states}
    shapes |= {s.shard: local_shape(s.subshape, s.updated, sizes, place) for s in states}
    shapes |= {s.value: local_shape(s.subshape, s.layout, sizes, place) for s in needed.inputs}
    for instruction in instructions:
        if not isinstance(instruction, Update):
            shapes |= {
                value: shape
                for value, shape in zip(instruction.results, instruction.shapes, strict=True)
                if value is not None
            }
    return shapes


def _backend(cluster: Cluster) -> str:
    """The backend that sends the messages: CPU ranks of one machine share memory."""
    if not cluster.device.is_host:
        return "nccl"
    return "shared" if cluster.num_nodes == 1 else "gloo"
