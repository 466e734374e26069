"""The `PipelineExecutor`: runs the stages of one rank of a pipeline, action by action, with the
sends and receives between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from planner.predict.stages import flow_of
from planner.program.actions import Action
from planner.program.program import Program
from planner.schedules.exchanges import Exchange, exchanges
from planner.stages.pipeline import Pipeline, Transfer
from planner.workload.workload import Workload
from runtime.executor import Executor
from runtime.groups import axes_used, group_size
from runtime.parcels import BACKWARD, FORWARD, UPDATE, Parcels, state_of

__all__ = ["PipelineExecutor", "make_pipeline_groups"]


def make_pipeline_groups(pipeline: Pipeline, rank: int) -> dict[int, dict[tuple[int, ...], Any]]:
    """This rank's process groups by stage and mesh axes. Every rank calls this."""
    out: dict[int, dict[tuple[int, ...], Any]] = {}
    for stage, program in enumerate(pipeline.programs):
        first, mine = pipeline.first_rank(stage), {}
        for axes in axes_used(program):
            if group_size(program.mesh, axes) > 1:
                for ranks in program.mesh.groups(axes):
                    shifted = [first + r for r in ranks]
                    made = dist.new_group(shifted)
                    if rank in shifted:
                        mine[axes] = made
        if pipeline.schedule.places[stage] == pipeline.place_of(rank):
            out[stage] = mine
    return out


class PipelineExecutor:
    """The executors of the stages that one rank holds, and what it exchanges with others.

    `step` runs a whole step: the rank's actions in the order of the schedule, what is exchanged at
    the end of the step (shares in the gradients of tied parameters, the norm of all gradients), the
    update. Every rank returns the loss, which the ranks of its stage send to all.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        workload: Workload,
        *,
        rank: int,
        device: str | torch.device = "cpu",
        keep_gradients: bool = False,
        seed: int = 0,
    ) -> None:
        self.pipeline, self.rank, self.device = pipeline, rank, torch.device(device)
        place = pipeline.place_of(rank)
        self.local_rank = rank - pipeline.firsts[place]
        groups = make_pipeline_groups(pipeline, rank)
        self.stages = {
            stage: Executor(
                pipeline.programs[stage],
                workload,
                rank=self.local_rank,
                groups=groups[stage],
                device=device,
                keep_gradients=keep_gradients,
                seed=seed,
            )
            for stage in pipeline.schedule.stages_at(place)
        }
        several = dist.is_initialized() and pipeline.num_ranks > 1
        ways = {
            phase: dist.new_group() if several else None for phase in (FORWARD, BACKWARD, UPDATE)
        }
        self.parcels = Parcels(pipeline, rank, self.device, ways)
        self.order = exchanges(pipeline.schedule, flow_of(pipeline))[place]
        self._named = {stage: _by_letter(pipeline.programs[stage]) for stage in self.stages}
        self._stash: dict[tuple[int, int], dict[int, Tensor]] = {}
        self._told: dict[str, Tensor] = {}
        self.reported: dict[str, float] = {}

    # ------------------------------------------------------------------------------------- the step

    def local_batch(self, batch: Sequence[Tensor]) -> dict[int, dict[int, Tensor]]:
        """The parts of the batch that the stages of this rank read."""
        return {stage: one.local_batch(batch) for stage, one in self.stages.items()}

    def step(self, batch: Sequence[Tensor]) -> float:
        """The loss of one training step on the global batch."""
        return self.step_local(self.local_batch(batch))

    def step_local(self, local: Mapping[int, dict[int, Tensor]]) -> float:
        """Like `step`, on the result of `local_batch`."""
        self._run(local)
        told = self._share_told()
        loss = told.pop("loss")
        self.reported = told
        return loss

    @torch.no_grad()
    def _run(self, local: Mapping[int, dict[int, Tensor]]) -> None:
        keys = {stage: one.next_key() for stage, one in self.stages.items()}
        try:
            for stage in self.stages:
                self._all_of("TOTALS", stage, local, keys)
            for exchange in self.order:
                self._one(exchange, local, keys)
            self._end(local, keys)
        finally:
            for stage, one in self.stages.items():
                for value in local[stage]:
                    one._state.pop(value, None)

    def _one(
        self,
        exchange: Exchange,
        local: Mapping[int, dict[int, Tensor]],
        keys: Mapping[int, Tensor],
    ) -> None:
        """One action of the schedule, and what its place does around it."""
        for message in exchange.posts:
            for transfer in self.parcels.between(message.source, message.target):
                self.parcels.post(transfer, message.source.microbatch)
        action = exchange.action
        executor = self.stages[action.stage]
        for transfer in self._coming(action):
            value = self.parcels.receive(transfer, action.microbatch)
            executor._state[state_of(executor.program.inputs, transfer.number)] = value
        self._act(self._named[action.stage][action.body, action.microbatch], local, keys)
        for transfer in self._going(action):
            self._send(transfer, action.microbatch)

    def _act(
        self,
        action: Action,
        local: Mapping[int, dict[int, Tensor]],
        keys: Mapping[int, Tensor],
    ) -> None:
        """Runs an action of a stage, with what earlier actions of its microbatch left for it."""
        stage = action.stage
        executor = self.stages[stage]
        executor._state.update(self._stash.pop((stage, action.microbatch), {}))
        given = executor.act(executor._fast, action, local[stage], keys[stage], None)
        kept = executor.program.stashed & executor._state.keys()
        if kept:
            self._stash[stage, action.microbatch] = {v: executor._state.pop(v) for v in kept}
        for (name, _), value in zip(executor.program.told, given or (), strict=False):
            self._told[name] = value

    def _all_of(
        self,
        body: str,
        stage: int,
        local: Mapping[int, dict[int, Tensor]],
        keys: Mapping[int, Tensor],
    ) -> None:
        """Runs the actions of a stage whose body has a name that begins so."""
        for action in self.pipeline.programs[stage].actions:
            if action.body.startswith(body):
                self._act(action, local, keys)

    def _coming(self, action: Action) -> list[Transfer]:
        """The values that an action reads and other stages make."""
        phase = _phase(action)
        return [t for t in self.pipeline.transfers if t.target == action.stage and t.phase == phase]

    def _going(self, action: Action) -> list[Transfer]:
        """The values that an action makes for other stages."""
        phase = _phase(action)
        return [t for t in self.pipeline.transfers if t.source == action.stage and t.phase == phase]

    def _send(self, transfer: Transfer, microbatch: int) -> None:
        executor = self.stages[transfer.source]
        (one,) = (s for s in executor.program.sent if s.crossing == transfer.number)
        self.parcels.send(transfer, microbatch, executor._state.pop(one.value))

    # ---------------------------------------------------------------------------- the end of a step

    def _end(self, local: Mapping[int, dict[int, Tensor]], keys: Mapping[int, Tensor]) -> None:
        """What stages exchange at the end of the step, and the updates that wait for it."""
        shares = [t for t in self.pipeline.transfers if t.phase == UPDATE]
        for transfer in shares:
            if transfer.target in self.stages:
                self.parcels.post(transfer, 0)
        for transfer in shares:
            if transfer.source in self.stages:
                self._send(transfer, 0)
        for transfer in shares:
            if transfer.target in self.stages:
                executor = self.stages[transfer.target]
                value = self.parcels.receive(transfer, 0)
                executor._state[state_of(executor.program.inputs, transfer.number)] = value
        for stage in self.stages:
            self._all_of("SHARES", stage, local, keys)
        self._sum_squares()
        for stage in self.stages:
            self._all_of("UPDATE", stage, local, keys)
        self.parcels.finish()

    def _sum_squares(self) -> None:
        """Brings the sum of the squares of the gradients of all stages to all of them."""
        if not any(program.squares for program in self.pipeline.programs):
            return
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for executor in self.stages.values():
            if (squares := executor.program.squares) is not None:
                value = executor._state.pop(squares[0]).to(torch.float64)
                total += value / executor.program.mesh.num_devices
        if self.pipeline.num_ranks > 1:
            dist.all_reduce(total)
        for executor in self.stages.values():
            if (squares := executor.program.squares) is not None:
                dtypes = {s.value: s.dtype for s in executor.program.inputs}
                executor._state[squares[1]] = total.to(getattr(torch, dtypes[squares[1]]))

    def _share_told(self) -> dict[str, float]:
        """The loss and its parts, which the last stages told, on every rank."""
        names = [
            (name, stage)
            for stage, program in enumerate(self.pipeline.programs)
            for name, _ in program.told
        ]
        found = torch.zeros(len(names), dtype=torch.float64, device=self.device)
        for place, (name, stage) in enumerate(names):
            if stage in self.stages and self.local_rank == 0:
                found[place] = self._told[name].to(torch.float64)
        if self.pipeline.num_ranks > 1:
            dist.all_reduce(found)
        return {name: float(value) for (name, _), value in zip(names, found, strict=True)}

    # ------------------------------------------------------------------------------------ for users

    @property
    def peak_memory_bytes(self) -> int:
        """The most that a stage of this rank held in a recorded step."""
        return max(one.peak_memory_bytes for one in self.stages.values())

    def gathered(self, values: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Full tensors by parameter name on rank 0, from this rank's shards by stage; empty on
        other ranks. All ranks call it together."""
        from runtime.parameters import assemble

        mine = {stage: dict(found) for stage, found in values.items()}
        every: list[Any] = [None] * self.pipeline.num_ranks
        if self.pipeline.num_ranks > 1:
            dist.all_gather_object(every, mine)
        else:
            every = [mine]
        if self.rank:
            return {}
        out: dict[str, Tensor] = {}
        for stage, program in enumerate(self.pipeline.programs):
            first = self.pipeline.first_rank(stage)
            ranks = range(first, first + program.mesh.num_devices)
            for state in program.parameters:
                pieces = [every[rank][stage][state.name] for rank in ranks]
                out[state.name] = assemble(pieces, state.subshape, state.updated, program.mesh)
        return out


def _by_letter(program: Program) -> dict[tuple[str, int], Action]:
    """A stage's actions by the letter of their body and their microbatch."""
    return {
        (action.body[0], action.microbatch): action
        for action in program.actions
        if action.body.partition("_")[0] in ("F", "B", "I", "W")
    }


def _phase(action: Action) -> str:
    """The phase of what crosses before and after an action; the half of backward that no stage
    waits for exchanges nothing."""
    return {"F": FORWARD, "B": BACKWARD, "I": BACKWARD}.get(action.body[0], "")
