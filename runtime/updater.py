"""The optimizer's step on a rank's pieces: of the parameters themselves, or of master copies from
which the parameters are then written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from planner.program.program import Program
from planner.workload.workload import Workload
from runtime.optimizers import make_optimizer, state_bytes

__all__ = ["Updater"]


class Updater:
    """The optimizer of `workload` over `shards`, in the order of the program's parameters.
    `updated` are the tensors that it updates: master copies where the program has them, else the
    shards."""

    def __init__(self, program: Program, workload: Workload, shards: Sequence[Tensor]) -> None:
        self.shards = list(shards)
        self.updated = [
            shard.to(getattr(torch, state.master)) if state.master else shard
            for state, shard in zip(program.parameters, shards, strict=True)
        ]
        self.optimizer = (
            make_optimizer(
                workload.optimizer,
                self.updated,
                workload.learning_rate,
                workload.optimizer_settings,
                [state.name for state in program.parameters],
            )
            if self.updated  # a pipeline stage may have no parameters
            else None
        )
        self._copies = [
            (shard, master)
            for shard, master in zip(self.shards, self.updated, strict=True)
            if master is not shard
        ]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Updates all parameters."""
        for tensor, gradient in zip(self.updated, gradients, strict=True):
            # torch's fused kernels read both in memory order.
            tensor.grad = (
                gradient if gradient.stride() == tensor.stride() else gradient.contiguous()
            )
        if self.optimizer is not None:
            self.optimizer.step()
        for tensor in self.updated:
            tensor.grad = None
        for shard, master in self._copies:
            shard.copy_(master)

    @property
    def nbytes(self) -> int:
        """The bytes of the optimizer's state and of master copies."""
        state = 0 if self.optimizer is None else state_bytes(self.optimizer)
        return state + sum(master.nbytes for _, master in self._copies)
