"""Plain training in one process, which a run is compared with: losses, gradients, parameters, and
how far rounding alone moves them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from planner.kernels import Random, precision, step_key
from planner.program.program import Program
from planner.trace.alone import alone
from planner.workload.workload import Workload
from runtime.optimizers import make_optimizer
from runtime.parameters import build, full_tensors
from runtime.verdict import largest

__all__ = ["Doubt", "Reference", "in_dtypes", "reference_run"]


#: The relative error up to which a run counts as equal, by the dtype of products.
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4}
COARSE = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The result of training in one process: the losses, the gradients of the first step, and the
    parameters and buffers at the end, by name.

    The same training is repeated after every parameter has been moved by one rounding, up or down
    at random. The differences are: `rounding`, of the first gradients; `doubt`, for every element,
    the largest difference of its gradient so far (at least the root mean square of its tensor's
    elements that differ) over the largest gradient that it has had, at the worst step; `noise`, the
    same for a tensor's largest elements; `buffer_rounding`, of the element of a buffer that differs
    most at the end; `loss_rounding`, of each loss. `moved` is how far training has moved the
    element of a parameter that it has moved most. `limit` is the dtype's.
    """

    losses: tuple[float, ...]
    gradients: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    rounding: Mapping[str, Tensor]
    doubt: Mapping[str, Tensor]
    noise: Mapping[str, float]
    moved: Mapping[str, float]
    buffer_rounding: Mapping[str, float]
    limit: float
    loss_rounding: tuple[float, ...] = ()


def in_dtypes(workload: Workload, program: Program) -> Workload:
    """The workload with its parameters and buffers in the program's dtypes."""
    wanted = {state.name: state.dtype for state in program.parameters}
    wanted |= {state.name: state.dtype for state in program.inputs if state.kind == "buffer"}
    for name, tensor in workload.state().tensors.items():
        if name in wanted:
            tensor.data = tensor.data.to(getattr(torch, wanted[name]))
    return workload


def reference_run(
    make: Callable[[], Workload],
    program: Program,
    *,
    seed: int,
    num_steps: int,
    began: Workload | None = None,
) -> Reference:
    """`num_steps` of plain training in this process, in the program's dtypes, with the same dropout
    masks. If `began` is given, it starts from that run's values and batch, since building the model
    again might give others."""
    trainer = _Trainer(make, program, seed, began)
    rounded = _Trainer(make, program, seed, began or trainer.workload)
    rounded.move_by_a_rounding()
    before = {name: parameter.detach().clone() for name, parameter in trainer.parameters.items()}
    losses: list[float] = []
    loss_rounding: list[float] = []
    gradients: dict[str, Tensor] = {}
    rounding: dict[str, Tensor] = {}
    doubts: dict[str, Doubt] = {}
    for step in range(num_steps):
        losses.append(trainer.step(step))
        loss_rounding.append(abs(rounded.step(step) - losses[-1]))
        found, other = trainer.gradients(), rounded.gradients()
        change = {name: (other[name] - g).abs() for name, g in found.items()}
        gradients, rounding = gradients or found, rounding or change
        for name, gradient in found.items():
            doubts.setdefault(name, Doubt(gradient)).add(gradient, change[name])
    return Reference(
        losses=tuple(losses),
        loss_rounding=tuple(loss_rounding),
        gradients=gradients,
        parameters={
            name: tensor.clone() for name, tensor in full_tensors(trainer.workload).items()
        },
        rounding=rounding,
        doubt={name: doubt.worst for name, doubt in doubts.items()},
        noise={name: doubt.of_largest for name, doubt in doubts.items()},
        moved={
            name: largest(parameter.detach() - before[name])
            for name, parameter in trainer.parameters.items()
        },
        buffer_rounding=_far(rounded.buffers(), trainer.buffers()),
        limit=LIMITS.get(trainer.compute, COARSE),
    )


class Doubt:
    """The share of noise in every element of a parameter's gradient, accumulated over steps
    (`Reference.doubt`, `Reference.noise`)."""

    def __init__(self, like: Tensor) -> None:
        self.strongest, self.change = torch.zeros_like(like), torch.zeros_like(like)
        self.worst, self.of_largest = torch.zeros_like(like, dtype=torch.float64), 0.0

    def add(self, gradient: Tensor, change: Tensor) -> None:
        self.strongest = torch.maximum(self.strongest, gradient.abs())
        self.change = torch.maximum(self.change, change)
        moved = self.change[self.change > 0].double()
        typical = float(moved.square().mean().sqrt()) if moved.numel() else 0.0
        # Infinite where the gradient is 0 by chance.
        share = self.change.double().clamp(min=typical) / self.strongest.double()
        self.worst = torch.maximum(
            self.worst, share.masked_fill((self.strongest == 0) & (self.change == 0), 0.0)
        )
        self.of_largest = max(
            self.of_largest, largest(self.change) / max(largest(self.strongest), sys.float_info.min)
        )


class _Trainer:
    """The module in plain torch, with its batch and optimizer."""

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
        held = list(self.parameters.values())
        self.compute = (
            getattr(torch, self.workload.compute) if self.workload.compute else held[0].dtype
        )
        self.optimizer = make_optimizer(
            self.workload.optimizer,
            held,
            self.workload.learning_rate,
            self.workload.optimizer_settings,
            list(self.parameters),
        )

    def move_by_a_rounding(self) -> None:
        """Moves every element of the parameters by one rounding in the dtype of products, up or
        down at random."""
        generator = torch.Generator().manual_seed(self.seed)
        for parameter in self.parameters.values():
            signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            parameter.data *= 1 + torch.finfo(self.compute).eps * signs.to(parameter.dtype)

    def step(self, step: int) -> float:
        """The loss of a training step; afterwards the parameters have its clipped gradients."""
        self.optimizer.zero_grad()
        with alone():  # a model with collectives of its own would wait for the other ranks
            with Random(step_key(self.seed, step)), precision(self.workload.compute):
                loss, _ = self.workload.loss_of(self.batch)
            loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self.parameters.values():
            if parameter.grad is not None and parameter.grad.is_sparse:
                # Fused optimizers take no others; to plain SGD it is the same.
                parameter.grad = parameter.grad.to_dense()
        if self.workload.clip_norm is not None:
            held = [
                parameter for parameter in self.parameters.values() if parameter.grad is not None
            ]
            norm = torch.nn.utils.get_total_norm(
                [parameter.grad for parameter in held if parameter.grad is not None]
            )
            scale = (self.workload.clip_norm / (norm + self.workload.clip_epsilon)).clamp(max=1.0)
            for parameter in held:
                parameter.grad = parameter.grad * scale  # type: ignore[operator]
        self.optimizer.step()
        return float(loss.item())

    def gradients(self) -> dict[str, Tensor]:
        return {name: p.grad.clone() for name, p in self.parameters.items() if p.grad is not None}

    def buffers(self) -> dict[str, Tensor]:
        return dict(self.workload.state().kept)


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


def _far(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest |a - b| of each tensor."""
    return {name: largest(tensor.double() - theirs[name].double()) for name, tensor in ours.items()}
