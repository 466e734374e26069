"""`--verify`: the same steps in one process, with the plain module, plain autograd and the same optimizer; and how far off."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planner.kernels import Random, precision, step_key
from planner.program import Program
from planner.workload import Workload
from runtime.optimizers import make_optimizer
from runtime.parameters import build, full_tensors

__all__ = ["Reference", "Verification", "compare", "in_dtypes", "reference_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Relative errors: the largest |a - b| over the largest |b| of a tensor; of the worst tensor, which is named.

    A tensor that is 0 but for rounding (the gradient of a bias that softmax or a batch norm takes away) is held against the largest
    |b| of all times the fourth root of the dtype's rounding; and where a gradient is that, Adam moves the parameter at random, which
    is not compared.
    """

    loss_error: float
    gradient_error: float
    parameter_error: float
    worst_gradient: str
    worst_parameter: str
    buffer_error: float = 0.0
    worst_buffer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What training gives: the losses, the gradients of the first step, and the parameters and buffers at the end, by name."""

    losses: tuple[float, ...]
    gradients: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]


def in_dtypes(workload: Workload, program: Program) -> Workload:
    """The workload with its parameters and buffers in the program's dtypes."""
    wanted = {state.name: state.dtype for state in program.parameters}
    wanted |= {state.name: state.dtype for state in program.inputs if state.kind == "buffer"}
    named = (*workload.module.named_parameters(), *workload.module.named_buffers())
    for name, tensor in named:
        if name in wanted:
            tensor.data = tensor.data.to(getattr(torch, wanted[name]))
    return workload


def reference_run(make: Callable[[], Workload], program: Program, *, seed: int, num_steps: int) -> Reference:
    """`num_steps` of plain training in this process, in the program's dtypes, under the same masks of dropout."""
    workload = in_dtypes(build(make, seed), program)
    dtypes = {int(state.name): getattr(torch, state.dtype) for state in program.inputs if state.kind == "input"}
    batch = [tensor.to(dtypes.get(i, tensor.dtype)) for i, tensor in enumerate(workload.batch)]
    parameters = dict(workload.module.named_parameters())
    optimizer = make_optimizer(workload.optimizer, list(parameters.values()), workload.learning_rate)
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    for step in range(num_steps):
        optimizer.zero_grad()
        with Random(step_key(seed, step)), precision(workload.compute):
            loss, _ = workload.loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if workload.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), workload.clip_norm)
        if not losses:
            gradients = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        optimizer.step()
        losses.append(loss.item())
    tensors = {name: tensor.clone() for name, tensor in full_tensors(workload).items()}
    return Reference(losses=tuple(losses), gradients=gradients, parameters=tensors)


def compare(
    losses: Sequence[float], gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor], reference: Reference,
    buffers: Mapping[str, Tensor] | None = None,
) -> Verification:  # fmt: skip
    """How far a run is from the reference; `buffers` are those that the step changes."""
    worst_gradient, gradient_error = _worst(gradients, reference.gradients)
    worst_parameter, parameter_error = _worst(_settled(parameters, reference), reference.parameters)
    worst_buffer, buffer_error = _worst(buffers or {}, reference.parameters)
    tiny = sys.float_info.min
    pairs = zip(losses, reference.losses, strict=True)
    return Verification(
        loss_error=max((_no_nan(abs(a - b) / max(abs(b), tiny)) for a, b in pairs), default=0.0),
        gradient_error=gradient_error,
        parameter_error=parameter_error,
        worst_gradient=worst_gradient,
        worst_parameter=worst_parameter,
        buffer_error=buffer_error,
        worst_buffer=worst_buffer,
    )


def _settled(parameters: Mapping[str, Tensor], reference: Reference) -> dict[str, Tensor]:
    """The parameters, with the reference's elements where its gradient is not 0 but below 100 roundings of the largest one."""
    gradients = reference.gradients
    largest = max((float(g.abs().max()) for g in gradients.values() if g.numel()), default=0.0)
    out = {}
    for name, tensor in parameters.items():
        out[name], gradient = tensor.cpu(), gradients.get(name)
        if gradient is not None:
            noise = (gradient != 0) & (gradient.abs() < 100 * torch.finfo(gradient.dtype).eps * largest)
            out[name] = torch.where(noise, reference.parameters[name].to(tensor.dtype), out[name])
    return out


def _worst(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[str, float]:
    largest = max((float(theirs[name].abs().max()) for name in ours if theirs[name].numel()), default=0.0)
    errors = {name: _relative_error(tensor.cpu(), theirs[name], largest) for name, tensor in ours.items()}
    name = max(errors, key=lambda name: errors[name], default="")
    return name, errors.get(name, 0.0)


def _relative_error(a: Tensor, b: Tensor, largest: float) -> float:
    if not b.numel():
        return 0.0
    difference = (a.double() - b.double()).abs().max().item()
    floor = largest * torch.finfo(b.dtype).eps ** 0.25 if b.is_floating_point() else 0.0
    return _no_nan(difference / max(b.double().abs().max().item(), floor, sys.float_info.min))


def _no_nan(error: float) -> float:
    """A comparison with not-a-number has failed, whatever `max` makes of it."""
    return float("inf") if error != error else error
