"""Training in one process of plain torch: the module, its loss and its optimizer, in the formats of a
program."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from planner.kernels import Random, step_key
from planner.program.program import Program
from planner.trace.alone import alone
from planner.workload.workload import Workload
from runtime.norm_parts import norms_of_parts
from runtime.optimizers import make_optimizer
from runtime.parameters import build, full_tensors

__all__ = ["PlainTrainer", "in_dtypes"]


def in_dtypes(workload: Workload, program: Program) -> Workload:
    """The workload with its parameters and buffers in the program's dtypes."""
    wanted = {state.name: state.dtype for state in program.parameters}
    wanted |= {state.name: state.dtype for state in program.inputs if state.kind == "buffer"}
    for name, tensor in workload.state().tensors.items():
        if name in wanted:
            tensor.data = tensor.data.to(getattr(torch, wanted[name]))
    return workload


class PlainTrainer:
    """The module in plain torch, with its batch and optimizer and, if the loss is scaled, torch's
    `GradScaler`. `updated` are the tensors that the
    optimizer updates, by name: the parameters, or their master copies; `coarsest` is the dtype of
    products or, if that has fewer bits, of gradients as they are reduced."""

    def __init__(
        self, make: Callable[[], Workload], program: Program, seed: int, began: Workload | None
    ) -> None:
        self.workload, self.seed = in_dtypes(build(make, seed), program), seed
        if began is not None:
            _begin_as(self.workload, began)
        dtypes = {
            int(state.name): getattr(torch, state.dtype)
            for state in program.inputs
            if state.kind == "input"
        }
        self.batch = [
            tensor.to(dtypes.get(i, tensor.dtype))
            for i, tensor in enumerate((began or self.workload).batch)
        ]
        self.parameters = _parameters(self.workload)
        master, reduce = self.workload.formats.master, self.workload.formats.reduce
        self.updated: dict[str, Tensor] = {
            name: p.detach().to(getattr(torch, master)) if master and p.requires_grad else p
            for name, p in self.parameters.items()
        }
        held = next(iter(self.parameters.values())).dtype
        self.reduced = getattr(torch, reduce) if reduce else held
        computed = getattr(torch, self.workload.compute) if self.workload.compute else held
        self.coarsest = max(computed, self.reduced, key=lambda dtype: torch.finfo(dtype).eps)
        self.scaler = torch.amp.GradScaler("cpu", enabled=self.workload.formats.scaled)
        self.skipped = False
        self.optimizer = make_optimizer(
            self.workload.optimizer,
            list(self.updated.values()),
            self.workload.learning_rate,
            self.workload.optimizer_settings,
            list(self.updated),
        )

    def move_by_a_rounding(self) -> None:
        """Moves every element of the parameters by one rounding in the coarsest dtype, up or down
        at random."""
        generator = torch.Generator().manual_seed(self.seed)
        for name, tensor in self.updated.items():
            signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
            tensor.data *= 1 + torch.finfo(self.coarsest).eps * signs.to(tensor.dtype)
            self.parameters[name].data.copy_(tensor.data)

    def step(self, step: int) -> float:
        """The loss of a training step; afterwards `updated` has its clipped gradients."""
        for tensor in (*self.parameters.values(), *self.updated.values()):
            tensor.grad = None
        with alone():  # a model with collectives of its own would wait for the other ranks
            with (
                Random(step_key(self.seed, step)),
                self.workload.precision(),
                norms_of_parts(self.workload.module, self.workload.norm_parts),
            ):
                loss, _ = self.workload.loss_of(self.batch)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                self.updated[name].grad = self._as_updated(parameter.grad, self.updated[name])
        self.scaler.unscale_(self.optimizer)
        self._clip()
        self.scaler.step(self.optimizer)
        before = self.scaler.get_scale()
        self.scaler.update()
        self.skipped = self.scaler.get_scale() < before
        for name, tensor in self.updated.items():
            if tensor is not self.parameters[name]:
                self.parameters[name].data.copy_(tensor)
        return float(loss.item())

    def _as_updated(self, gradient: Tensor, updated: Tensor) -> Tensor:
        """A gradient in the format of the tensor that it updates, by way of that in which ranks sum
        it."""
        # Fused optimizers take no sparse ones; to plain SGD it is the same.
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        return dense.to(self.reduced).to(updated.dtype)

    def _clip(self) -> None:
        if self.workload.clip_norm is None:
            return
        held = [tensor for tensor in self.updated.values() if tensor.grad is not None]
        norm = torch.nn.utils.get_total_norm(
            [tensor.grad for tensor in held if tensor.grad is not None]
        )
        scale = (self.workload.clip_norm / (norm + self.workload.clip_epsilon)).clamp(max=1.0)
        for tensor in held:
            tensor.grad = tensor.grad * scale  # type: ignore[operator]

    def gradients(self) -> dict[str, Tensor]:
        """The gradients that the optimizer has read, by name; none if it has skipped the step."""
        if self.skipped:
            return {}
        return {name: t.grad.clone() for name, t in self.updated.items() if t.grad is not None}

    def buffers(self) -> dict[str, Tensor]:
        """The buffers that are kept between steps, by name."""
        return dict(self.workload.state().kept)

    def state(self) -> dict[str, Tensor]:
        """Copies of all parameters, buffers and constants, by name; of a parameter with a master
        copy, that."""
        whole = {**full_tensors(self.workload), **self.updated}
        return {name: tensor.detach().clone() for name, tensor in whole.items()}


def _parameters(workload: Workload) -> dict[str, torch.nn.Parameter]:
    """All parameters, frozen ones too, by name."""
    state = workload.state()
    frozen = {
        name: tensor
        for name, tensor in state.buffers.items()
        if isinstance(tensor, torch.nn.Parameter)
    }
    return {**state.trained, **frozen}


def _begin_as(workload: Workload, began: Workload) -> None:
    """Copies to a workload the values of another of the same model: a builder that draws from a
    generator of its own gives new values each time."""
    values = full_tensors(began)
    for name, tensor in full_tensors(workload).items():
        if not torch.equal(tensor, values[name]):
            tensor.copy_(values[name])
