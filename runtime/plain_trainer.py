"""Training in one process of plain torch: the module, its loss and its optimizer, in the formats of
a program."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from planner.kernels import Random, step_key
from planner.program.program import Program
from planner.stages.pipeline import Pipeline
from planner.trace.alone import alone
from planner.workload.workload import Workload
from runtime.norm_parts import norms_of_parts
from runtime.optimizers import make_optimizer
from runtime.parameters import build, full_tensors

__all__ = ["PlainTrainer", "Scaled", "in_dtypes"]


def in_dtypes(workload: Workload, program: Program | Pipeline) -> Workload:
    """The workload with its parameters and buffers in the program's dtypes."""
    wanted = {state.name: state.dtype for state in program.parameters}
    wanted |= {state.name: state.dtype for state in program.inputs if state.kind == "buffer"}
    for name, tensor in workload.state().tensors.items():
        if name in wanted:
            tensor.data = tensor.data.to(getattr(torch, wanted[name]))
    return workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """A step of a run whose loss is scaled: by `scale`, and `skipped` or not. The run adds gradients
    up in `num_parts`."""

    scale: float
    skipped: bool
    num_parts: int

    @property
    def slack(self) -> float:
        """How many times as large a scale may be before a sum overflows in one process, if it
        overflowed in parts, and the other way round: a power of two of at least twice the parts."""
        return 2.0 ** math.ceil(math.log2(2 * self.num_parts))


class PlainTrainer:
    """The module in plain torch, with its batch and optimizer and, if the loss is scaled, torch's
    `GradScaler`. `updated` are the tensors that the optimizer updates, by name: the parameters, or
    their master copies; `coarsest` is the dtype of products or, if that has fewer bits, of
    gradients as they are reduced."""

    def __init__(
        self,
        make: Callable[[], Workload],
        program: Program | Pipeline,
        seed: int,
        began: Workload | None,
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
        self.skipped, self.scale, self.stretch = False, self.scaler.get_scale(), 1.0
        self.scaler.scale(torch.zeros(()))  # it makes its own state at its first use
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

    def step(self, step: int, run: Scaled | None = None) -> float:
        """The loss of a training step; afterwards `updated` has its clipped gradients. With `run`,
        the step that it is compared with, the loss has the scale of that or, if it is skipped in
        one of the two only, the nearest that explains it."""
        loss = self._backward(step) if run is None else self._backward_as(step, run)
        self.skipped = not self._is_finite()
        self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scale = self.scaler.get_scale() / (1.0 if run is None else self.stretch)
        for name, tensor in self.updated.items():
            if tensor is not self.parameters[name]:
                self.parameters[name].data.copy_(tensor)
        return loss

    def _backward_as(self, step: int, run: Scaled) -> float:
        """Like `_backward`, with the run's scale times `stretch`: 1 or, if only one of the two then
        overflows, what explains that."""
        before = {name: buffer.clone() for name, buffer in self.buffers().items()}
        for self.stretch in (1.0, run.slack if run.skipped else 1 / run.slack):
            for name, buffer in self.buffers().items():
                buffer.copy_(before[name])
            self.scaler.update(run.scale * self.stretch)
            loss = self._backward(step)
            if self._is_finite() != run.skipped:
                break
        return loss

    def _backward(self, step: int) -> float:
        """The loss, of which `updated` gets the gradients, unscaled."""
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
        return float(loss.item())

    def _is_finite(self) -> bool:
        """Whether the step may be made: always, if the loss is not scaled."""
        gradients = (tensor.grad for tensor in self.updated.values() if tensor.grad is not None)
        return not self.scaler.is_enabled() or all(bool(g.isfinite().all()) for g in gradients)

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
