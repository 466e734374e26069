"""The `Executor`: runs a `Program` on one rank, step after step. It is the only place in the
project that holds state."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cost_models.timeline import Timeline
from planner.graph.layout import Layout, Mesh, SubShape, is_split, local_shape
from planner.kernels import key_of_microbatch, step_key
from planner.kernels.shared import shared_memory_of
from planner.program.actions import Action
from planner.program.program import Instruction, Program
from planner.torch_private.allocator import allocations
from planner.workload.workload import Workload
from runtime.batch import local_batch, pieces_of
from runtime.fused import Kernels, check_compiler
from runtime.groups import Groups
from runtime.indices import said
from runtime.loss_scale import LossScale
from runtime.parameters import assemble, shards
from runtime.recorder import Recorder, make_recorder
from runtime.source import Step, generate, replaced
from runtime.updater import Updater

__all__ = ["Executor", "gather_buffers", "gather_parameters"]


class Executor:
    """One rank's parameters, optimizer and compiled bodies.

    `workload` has the initial parameters and the optimizer; `groups` come from `make_groups`.
    Dropout's masks are drawn from `seed` and the number of the step; `num_steps` is the number of
    steps done, `kernels` the compiled ones of fused ops. With `keep_gradients`, `gradients` has the
    gradients of the last update by parameter name, as shards in the layout `updated`. `loss_scale`
    is that of a loss that is scaled: a step whose gradients overflow makes no update.
    """

    def __init__(
        self,
        program: Program,
        workload: Workload,
        *,
        rank: int = 0,
        groups: Groups | None = None,
        device: str | torch.device = "cpu",
        keep_gradients: bool = False,
        seed: int = 0,
    ) -> None:
        assert program.rank in (None, rank), (program.rank, rank)
        self.program = program
        self.rank = rank
        self.device = torch.device(device)
        check_compiler(program, self.device)
        self.keep_gradients = keep_gradients
        self.seed = seed
        self.num_steps = 0
        #: What runs, in words, for messages.
        self.running = f"rank {rank}"
        self.reported: dict[str, float] = {}
        self.gradients: dict[str, Tensor] = {}
        self.peak_memory_bytes = 0
        self._groups = groups or {}
        self._example = workload.batch
        self._state = shards(program, workload, rank, self.device)
        held = [self._state[state.shard] for state in program.parameters]
        self._updater = Updater(program, workload, held)
        self.loss_scale = LossScale() if workload.formats.scaled else None
        self.kernels: Kernels = {}
        self._fast = self._generate(recorded=False)
        self._recorded: Mapping[str, Step] | None = None

    def step(self, batch: Sequence[Tensor]) -> float:
        """The loss of one training step on the global batch, of which this rank takes its part."""
        return self.step_local(self.local_batch(batch))

    def step_local(self, local: dict[int, Tensor]) -> float:
        """Like `step`, on the result of `local_batch`. If the loss is a sum of several, `reported`
        then has each by name."""
        loss, *several = self._run(self._fast, local, None)
        self.reported = {
            name: float(value)
            for (name, _), value in zip(self.program.reported, several, strict=True)
        }
        return float(loss)

    def warm(self, local: dict[int, Tensor]) -> None:
        """Compiles the kernels of fused ops for the operands that they will get, by running the
        step once without its update. All ranks call it together."""
        if not self.kernels:
            return
        held, done = dict(self._state), self.num_steps
        self._run(self.without_update(), local, None)
        self._state, self.num_steps = held, done

    def recorded_step(self, batch: Sequence[Tensor]) -> Timeline:
        """The timeline of one training step on this rank, which trains like `step`; also sets
        `peak_memory_bytes`."""
        bodies = self.recorded_bodies()
        local = self.local_batch(batch)
        if dist.is_initialized() and self.program.mesh.num_devices > 1:
            dist.barrier()
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            torch.cuda.synchronize(self.device)
        self.renew()
        with allocations(self.device) as recorded:
            recorder = make_recorder({0: self.program}, self.rank, self.held(local), self.device)
            self._run(bodies, local, recorder)
        timeline = recorder.timeline(recorded)
        self.peak_memory_bytes = (
            torch.cuda.max_memory_allocated(self.device) if cuda else timeline.peak_memory
        )
        return timeline

    @property
    def shared_memory_bytes(self) -> int:
        """Bytes per rank of the memory through which the ranks of one machine send."""
        memories = {id(m): m for m in map(shared_memory_of, self._groups.values()) if m is not None}
        return sum(memory.nbytes // memory.num_ranks for memory in memories.values())

    def renew(self) -> None:
        """Reallocates, while recording, the values that a step replaces: the allocator's record
        does not count frees of memory that was allocated before it began."""
        if self.device.type == "cpu":
            with allocations(self.device):
                for value in replaced(self.program):
                    self._state[value] = self._state[value].clone()

    def held(self, local: dict[int, Tensor]) -> int:
        """Bytes held before the step: parameters, buffers, this rank's part of the batch, the
        optimizer's state."""
        storages = (tensor.untyped_storage() for tensor in (*self._state.values(), *local.values()))
        return sum({s.data_ptr(): s.nbytes() for s in storages}.values()) + self._updater.nbytes

    def local_batch(self, batch: Sequence[Tensor]) -> dict[int, Tensor]:
        """This rank's part of the batch, by value id."""
        local = local_batch(self.program, batch, self._example, self.rank)
        return {value: tensor.to(self.device) for value, tensor in local.items()}

    def parameter_shards(self) -> dict[str, Tensor]:
        """The optimizer's shard of each parameter, by name, in the layout `updated`: that of its
        master copy if it has one."""
        return {
            state.name: shard
            for state, shard in zip(self.program.parameters, self._updater.updated, strict=True)
        }

    def buffer(self, value: int) -> Tensor:
        """This rank's shard of a buffer, by its value id."""
        return self._state[value]

    def recorded_bodies(self) -> Mapping[str, Step]:
        """The bodies that note every instruction."""
        self._recorded = self._recorded or self._generate(recorded=True)
        return self._recorded

    def without_update(self) -> Mapping[str, Step]:
        """The bodies of a step that changes no parameters."""
        return self._generate(recorded=False, update=lambda *gradients, **squares: None)

    def _generate(
        self, *, recorded: bool, update: Callable[..., None] | None = None
    ) -> Mapping[str, Step]:
        return {
            body: generate(
                self.program,
                body,
                rank=self.rank,
                groups=self._groups,
                device=self.device,
                update=update or self._update,
                recorded=recorded,
                kernels=self.kernels,
            )
            for body in self.program.bodies
        }

    @torch.no_grad()
    def _run(
        self, bodies: Mapping[str, Step], local: dict[int, Tensor], recorder: Recorder | None
    ) -> tuple[Tensor, ...]:
        """Runs all actions; returns what the last one gives."""
        key = self.next_key()
        given: tuple[Tensor, ...] = ()
        try:
            for action in self.program.actions:
                given = self.act(bodies, action, local, key, recorder)
        finally:
            for value in local:
                self._state.pop(value, None)
        return given

    def next_key(self) -> Tensor:
        """The key from which the next step's random masks are drawn."""
        self.num_steps += 1
        return step_key(self.seed, self.num_steps - 1)

    def act(
        self,
        bodies: Mapping[str, Step],
        action: Action,
        local: dict[int, Tensor],
        key: Tensor,
        recorder: Recorder | None,
    ) -> tuple[Tensor, ...]:
        """Runs one action of a step; returns what its body gives."""
        self._state |= pieces_of(self.program, local, action.microbatch)
        self._state |= self._numbers(key, action.microbatch)
        if recorder is not None:
            recorder.action = action
        return self._act(bodies[action.body], recorder)

    def _numbers(self, key: Tensor, microbatch: int) -> dict[int, Tensor]:
        """The key from which a microbatch's random masks are drawn, and the scale of the loss, by
        value id."""
        several = self.program.microbatches > 1
        numbers = {"key": key_of_microbatch(key, microbatch) if several else key}
        if self.loss_scale is not None:
            numbers["scale"] = self.loss_scale.tensor(self.device)
        return {s.value: numbers[s.kind] for s in self.program.inputs if s.kind in numbers}

    def _act(self, step: Step, recorder: Recorder | None) -> tuple[Tensor, ...]:
        """Runs one action. An error names the instruction that raised it."""
        try:
            return step.run(self._state, recorder)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            at, values = self._failed(step, error)
            kind, why = said(error, at, values)
            raise kind(f"{self.running}: {_place(at)}{why}") from error

    def _failed(
        self, step: Step, error: BaseException
    ) -> tuple[Instruction | None, dict[str, Any]]:
        """The instruction that raised `error`, and the step's variables at that time."""
        for frame, line in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename == step.filename and line in step.lines:
                return step.instructions[step.lines[line]], frame.f_locals
        return None, {}

    def _update(self, *gradients: Tensor, squares: Tensor | None = None) -> None:
        if self.loss_scale is not None and gradients:
            assert squares is not None
            if not self.loss_scale.passes(squares):
                return
        if self.keep_gradients:
            names = [state.name for state in self.program.parameters]
            self.gradients = {
                name: gradient.clone() for name, gradient in zip(names, gradients, strict=True)
            }
        self._updater.step(gradients)


def _place(instruction: Instruction | None) -> str:
    """An instruction in words, for messages."""
    if instruction is None:
        return ""
    what = getattr(instruction, "op", instruction.kind)
    return f"instruction {instruction.id} ({what}, {instruction.path or 'no module'}): "


def gather_buffers(executor: Executor) -> dict[str, Tensor]:
    """The full buffers that the step changes, by name, on every rank. All ranks call it
    together."""
    program, out = executor.program, {}
    stored = {value for value, _ in program.stores}
    for state in program.inputs:
        if state.value in stored and state.name not in out:
            out[state.name] = _gather(
                executor.buffer(state.value), state.subshape, state.layout, program.mesh
            )
    return out


def gather_parameters(
    executor: Executor, values: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The full parameters by name, on every rank; or the full tensors of other `values` in the same
    layouts, such as `executor.gradients`.

    All ranks call it together.
    """
    mesh = executor.program.mesh
    values = executor.parameter_shards() if values is None else values
    out: dict[str, Tensor] = {}
    for state in executor.program.parameters:
        out[state.name] = _gather(values[state.name], state.subshape, state.updated, mesh)
    return out


def _gather(shard: Tensor, subshape: SubShape, layout: Layout, mesh: Mesh) -> Tensor:
    """The full tensor, from every rank's shard; shards are sent padded to the largest."""
    shard = shard.contiguous()
    if not any(is_split(placement) for placement in layout):
        return shard.clone()
    shapes = [
        local_shape(subshape, layout, mesh.sizes, mesh.coordinate(rank))
        for rank in range(mesh.num_devices)
    ]
    mine = shard.new_zeros(max(map(math.prod, shapes)))
    mine[: shard.numel()] = shard.view(-1)
    pieces = [torch.empty_like(mine) for _ in shapes]
    dist.all_gather(pieces, mine)
    whole = [
        piece[: math.prod(shape)].view(shape) for piece, shape in zip(pieces, shapes, strict=True)
    ]
    return assemble(whole, subshape, layout, mesh)
