"""The `PipelineExecutor`: runs the stages of one rank of a pipeline, action by action, with the
sends and receives between them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cost_models.timeline import Timeline
from planner.kernels.groups import reduced
from planner.predict.stages import flow_of
from planner.program.actions import Action
from planner.program.program import InputState, Program
from planner.schedules.exchanges import exchanges
from planner.stages.pipeline import Pipeline, Transfer
from planner.torch_private.allocator import allocations
from planner.workload.workload import Workload
from runtime.executor import Executor
from runtime.groups import axes_used, group_size
from runtime.loss_scale import LossScale
from runtime.parameters import assemble
from runtime.parcels import BACKWARD, FORWARD, UPDATE, Parcels, state_of
from runtime.progress import Progress
from runtime.recorder import Recorder, make_recorder
from runtime.source import Step

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


#: The phase of what crosses before and after an action; the half of backward that no stage waits for
#: exchanges nothing.
_PHASES = {"F": FORWARD, "B": BACKWARD, "I": BACKWARD}

#: The bodies that no microbatch has, in words.
_ENDS = {"TOTALS": "totals of the batch", "SHARES": "end of the step", "UPDATE": "update"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """An action of the schedule as this rank runs it, and what it posts, gets and sends."""

    action: Action
    words: str
    posts: tuple[tuple[Transfer, int], ...]
    coming: tuple[tuple[Transfer, int], ...]
    going: tuple[tuple[Transfer, int], ...]


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of all actions: the bodies, the parts of the batch and the keys, by stage."""

    bodies: Mapping[int, Mapping[str, Step]]
    local: Mapping[int, dict[int, Tensor]]
    keys: Mapping[int, Tensor]
    recorder: Recorder | None


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
        self.place = pipeline.place_of(rank)
        self.local_rank = rank - pipeline.firsts[self.place]
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
            for stage in pipeline.stages_of(rank)
        }
        self.parcels = Parcels(pipeline, rank, self.device)
        self.world = dist.group.WORLD if pipeline.num_ranks > 1 else None
        self.progress = Progress()
        self.order = tuple(self._steps())
        self._stash: dict[tuple[int, int], dict[int, Tensor]] = {}
        self._told: dict[str, Tensor] = {}
        self.reported: dict[str, float] = {}
        self.peak_memory_bytes = 0

    def _steps(self) -> Iterator[_Step]:
        """This rank's actions, with what it does around them."""
        by_letter = {stage: _by_letter(one.program) for stage, one in self.stages.items()}
        for exchange in exchanges(self.pipeline.schedule, flow_of(self.pipeline))[self.place]:
            planned = exchange.action
            phase = _PHASES.get(planned.body, "")
            posts = (
                (transfer, message.source.microbatch)
                for message in exchange.posts
                for transfer in self.parcels.between(message.source, message.target)
            )
            yield _Step(
                action=by_letter[planned.stage][planned.body, planned.microbatch],
                words=f"rank {self.rank}: stage {planned.stage}, action {planned}",
                posts=tuple(posts),
                coming=self._coming(planned.stage, phase),
                going=self._going(planned.stage, phase),
            )

    def _coming(self, stage: int, phase: str) -> tuple[tuple[Transfer, int], ...]:
        """What a stage gets from others in a phase, and the values as which it comes in."""
        if stage not in self.stages:
            return ()
        inputs = self.pipeline.programs[stage].inputs
        return tuple(
            (transfer, state_of(inputs, transfer.number))
            for transfer in self.pipeline.transfers
            if (transfer.target, transfer.phase) == (stage, phase)
        )

    def _going(self, stage: int, phase: str) -> tuple[tuple[Transfer, int], ...]:
        """What a stage makes for others in a phase, and the values that it is."""
        if stage not in self.stages:
            return ()
        sent = {one.crossing: one.value for one in self.pipeline.programs[stage].sent}
        return tuple(
            (transfer, sent[transfer.number])
            for transfer in self.pipeline.transfers
            if (transfer.source, transfer.phase) == (stage, phase)
        )

    # ------------------------------------------------------------------------------------- the step

    def local_batch(self, batch: Sequence[Tensor]) -> dict[int, dict[int, Tensor]]:
        """The parts of the batch that the stages of this rank read."""
        return {stage: one.local_batch(batch) for stage, one in self.stages.items()}

    def step(self, batch: Sequence[Tensor]) -> float:
        """The loss of one training step on the global batch."""
        return self.step_local(self.local_batch(batch))

    def step_local(self, local: Mapping[int, dict[int, Tensor]]) -> float:
        """Like `step`, on the result of `local_batch`."""
        self._run({stage: one._fast for stage, one in self.stages.items()}, local, None)
        told = self._share_told()
        loss = told.pop("loss")
        self.reported = told
        return loss

    def warm(self, local: Mapping[int, dict[int, Tensor]]) -> None:
        """Like `Executor.warm`, for all stages."""
        compiled = torch.tensor(sum(len(one.kernels) for one in self.stages.values()))
        if self.world is not None:
            compiled = reduced(compiled, self.world)
        if not compiled:
            return
        held = {stage: (dict(one._state), one.num_steps) for stage, one in self.stages.items()}
        self._run({stage: one.without_update() for stage, one in self.stages.items()}, local, None)
        for stage, (state, num_steps) in held.items():
            self.stages[stage]._state, self.stages[stage].num_steps = state, num_steps

    def recorded_step(self, batch: Sequence[Tensor]) -> Timeline:
        """The timeline of one training step on this rank, of all its stages; also sets
        `peak_memory_bytes`."""
        bodies = {stage: one.recorded_bodies() for stage, one in self.stages.items()}
        local = self.local_batch(batch)
        if self.world is not None:
            dist.barrier()
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            torch.cuda.synchronize(self.device)
        for one in self.stages.values():
            one.renew()
        programs = {stage: one.program for stage, one in self.stages.items()}
        with allocations(self.device) as recorded:
            held = sum(one.held(local[stage]) for stage, one in self.stages.items())
            recorder = make_recorder(programs, self.rank, held, self.device)
            self._run(bodies, local, recorder)
        timeline = recorder.timeline(recorded)
        self.peak_memory_bytes = (
            torch.cuda.max_memory_allocated(self.device) if cuda else timeline.peak_memory
        )
        return timeline

    @torch.no_grad()
    def _run(
        self,
        bodies: Mapping[int, Mapping[str, Step]],
        local: Mapping[int, dict[int, Tensor]],
        recorder: Recorder | None,
    ) -> None:
        keys = {stage: one.next_key() for stage, one in self.stages.items()}
        run = _Run(bodies, local, keys, recorder)
        try:
            for stage in self.stages:
                self._all_of("TOTALS", stage, run)
            for step in self.order:
                self._one(step, run)
            self._end(run)
        finally:
            for stage, one in self.stages.items():
                for value in local[stage]:
                    one._state.pop(value, None)
        self.progress.note("")

    def _one(self, step: _Step, run: _Run) -> None:
        """One action of the schedule, and what its place does around it."""
        self.progress.note(step.words)
        action = step.action
        executor = self.stages[action.stage]
        executor.running = step.words
        for transfer, microbatch in step.posts:
            self.parcels.post(transfer, microbatch)
        with _saying(step.words):
            for transfer, state in step.coming:
                executor._state[state] = self.parcels.receive(
                    transfer, action.microbatch, run.recorder
                )
        self._act(action, run)
        with _saying(step.words):
            for transfer, value in step.going:
                made = executor._state.pop(value)
                self.parcels.send(transfer, action.microbatch, made, run.recorder)

    def _act(self, action: Action, run: _Run) -> None:
        """Runs an action of a stage, with what earlier actions of its microbatch left for it."""
        stage = action.stage
        executor = self.stages[stage]
        executor._state.update(self._stash.pop((stage, action.microbatch), {}))
        given = executor.act(
            run.bodies[stage], action, run.local[stage], run.keys[stage], run.recorder
        )
        kept = executor.program.stashed & executor._state.keys()
        if kept:
            self._stash[stage, action.microbatch] = {v: executor._state.pop(v) for v in kept}
        for (name, _), value in zip(executor.program.told, given or (), strict=False):
            self._told[name] = value.clone()  # not the bucket in which it was summed

    def _all_of(self, body: str, stage: int, run: _Run) -> None:
        """Runs the actions of a stage whose body has a name that begins so."""
        self.stages[stage].running = f"rank {self.rank}: stage {stage}, {_ENDS[body]}"
        for action in self.pipeline.programs[stage].actions:
            if action.body.startswith(body):
                self.progress.note(self.stages[stage].running)
                self._act(action, run)

    # ---------------------------------------------------------------------------- the end of a step

    def _end(self, run: _Run) -> None:
        """What stages exchange at the end of the step, and the updates that wait for it."""
        self.progress.note(f"rank {self.rank}: the end of the step")
        for stage in self.stages:
            for transfer, _ in self._coming(stage, UPDATE):
                self.parcels.post(transfer, 0)
        for stage, executor in self.stages.items():
            for transfer, value in self._going(stage, UPDATE):
                self.parcels.send(transfer, 0, executor._state.pop(value), run.recorder)
        for stage, executor in self.stages.items():
            for transfer, state in self._coming(stage, UPDATE):
                executor._state[state] = self.parcels.receive(transfer, 0, run.recorder)
        for stage in self.stages:
            self._all_of("SHARES", stage, run)
        self._sum_squares()
        for stage in self.stages:
            self._all_of("UPDATE", stage, run)
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
        if self.world is not None:
            total = reduced(total, self.world)
        for executor in self.stages.values():
            if (squares := executor.program.squares) is not None:
                dtypes = {s.value: s.dtype for s in executor.program.inputs}
                executor._state[squares[1]] = total.to(getattr(torch, dtypes[squares[1]]))
            elif executor.loss_scale is not None:
                executor.loss_scale.passes(total)  # it has no gradients of its own

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
        if self.world is not None:
            found = reduced(found, self.world)
        return {name: float(value) for (name, _), value in zip(names, found, strict=True)}

    # ------------------------------------------------------------------------------------ for users

    @property
    def loss_scale(self) -> LossScale | None:
        """That of the loss, if it is scaled: all stages have the same."""
        return next(iter(self.stages.values())).loss_scale

    @property
    def shared_memory_bytes(self) -> int:
        """Bytes per rank of the memory through which the ranks of one machine send."""
        own = sum(one.shared_memory_bytes for one in self.stages.values())
        memory = self.parcels.memory
        return own + (0 if memory is None else memory.nbytes // memory.num_ranks)

    @property
    def keep_gradients(self) -> bool:
        """Whether the gradients of the last update are kept."""
        return all(one.keep_gradients for one in self.stages.values())

    @keep_gradients.setter
    def keep_gradients(self, wanted: bool) -> None:
        for one in self.stages.values():
            one.keep_gradients = wanted

    def whole_gradients(self) -> dict[str, Tensor]:
        """The gradients of the last update, whole, by parameter name, on rank 0; empty on others.
        All ranks call it together."""
        return self.gathered({stage: one.gradients for stage, one in self.stages.items()})

    def whole_parameters(self) -> dict[str, Tensor]:
        """The same of the parameters."""
        return self.gathered({stage: one.parameter_shards() for stage, one in self.stages.items()})

    def whole_buffers(self) -> dict[str, Tensor]:
        """The same of the buffers that the step changes."""
        mine = {
            stage: {state.name: one.buffer(state.value) for state in _changed(one.program)}
            for stage, one in self.stages.items()
        }
        out: dict[str, Tensor] = {}
        for stage, program, pieces in self._from_all(mine):
            for state in _changed(program):
                shards = [piece[stage][state.name] for piece in pieces]
                out[state.name] = assemble(shards, state.subshape, state.layout, program.mesh)
        return out

    def gathered(self, values: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Full tensors by parameter name on rank 0, from this rank's shards by stage; empty on
        other ranks. All ranks call it together."""
        out: dict[str, Tensor] = {}
        for stage, program, pieces in self._from_all(values):
            for state in program.parameters:
                shards = [piece[stage][state.name] for piece in pieces]
                out[state.name] = assemble(shards, state.subshape, state.updated, program.mesh)
        return out

    def _from_all(
        self, values: Mapping[int, Mapping[str, Tensor]]
    ) -> Iterator[tuple[int, Program, list[Any]]]:
        """On rank 0: every stage, its program, and what its ranks have; nothing on other ranks."""
        mine = {s: {name: t.cpu() for name, t in found.items()} for s, found in values.items()}
        every: list[Any] | None = [None] * self.pipeline.num_ranks if self.rank == 0 else None
        if self.world is not None:
            dist.gather_object(mine, every)
        else:
            every = [mine]
        for stage, program in enumerate(self.pipeline.programs if every is not None else ()):
            assert every is not None
            first = self.pipeline.first_rank(stage)
            yield stage, program, every[first : first + program.mesh.num_devices]


def _changed(program: Program) -> tuple[InputState, ...]:
    """The buffers that a step changes."""
    stored = {value for value, _ in program.stores}
    return tuple(state for state in program.inputs if state.value in stored)


def _by_letter(program: Program) -> dict[tuple[str, int], Action]:
    """A stage's actions by the letter of their body and their microbatch."""
    return {
        (action.body[0], action.microbatch): action
        for action in program.actions
        if action.body.partition("_")[0] in ("F", "B", "I", "W")
    }


@contextlib.contextmanager
def _saying(words: str) -> Iterator[None]:
    """A context whose errors say what the rank was about to do: a peer that is gone, for one."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(f"{words}: {error}") from error
