"""`--verify`: the same steps in one process, with the plain module, plain autograd and the same
optimizer; and how far off."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planner.kernels import Random, precision, step_key
from planner.program.program import Program
from planner.trace.alone import alone
from planner.workload.workload import Workload
from runtime.optimizers import make_optimizer
from runtime.parameters import build, full_tensors
from runtime.verdict import Apart, judge, largest, worst_of

__all__ = ["Doubt", "Reference", "Verification", "compare", "in_dtypes", "reference_run"]


#: Relative errors up to which a run counts as the same, by the dtype of products.
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4}
COARSE = 1e-2
#: A run may be as far from the reference as this many times what one rounding of the parameters
#: does to it.
MARGIN = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How a run compares with the same steps in one process.

    `worst` has the worst element among losses, gradients, parameters and buffers, the worst first.
    A relative error is the largest |a - b| of a tensor over its largest |b|, of the worst tensor;
    `worst_gradient` and the like name it. An error over `limit` is wrong.

    The rounding errors of plain torch in one process are measured (`Reference`). They bound what is
    accepted for a gradient that would be 0 without rounding (of a bias that a softmax or a batch
    norm cancels), and for a buffer (the running mean of centred values, or of values with such a
    bias). An optimizer like Adam moves an element of a parameter at random if its gradient is
    nearly 0. Such an element counts only by the part of its error that exceeds what rounding may
    do: `num_left_out` of `num_elements` could be wrong by more than the limit of their dtype
    without being noticed here. Their gradients are compared like all others.
    """

    verdict: str
    worst: tuple[Apart, ...]
    limit: float
    loss_error: float
    gradient_error: float
    parameter_error: float
    worst_gradient: str
    worst_parameter: str
    buffer_error: float = 0.0
    worst_buffer: str = ""
    num_left_out: int = 0
    num_elements: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What training gives: the losses, the gradients of the first step, and the parameters and
    buffers at the end, by name.

    The same training is done again after every parameter has been moved by one rounding, up or down
    at random: `rounding` is how far that moves the first gradients. `doubt` has, for every element,
    how far its gradient has moved so far, and at least as far as is typical of its tensor (the root
    mean square of what moved), over the largest that it has been, at the worst step; `noise` is the
    same of a tensor's largest elements; `moved` is how far the element of a parameter that moved
    most has moved at the end, and `buffer_rounding` how far the element of a buffer that differs
    most then differs; `loss_rounding` how far each loss has moved. `limit` is the dtype's.
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
    """`num_steps` of plain training in this process, in the program's dtypes, under the same
    masks of dropout; from the values and on the batch with which a run `began`, where building
    the model again gives others."""
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
    """How much of every element of a parameter's gradient is noise, step by step
    (`Reference.doubt`, `Reference.noise`)."""

    def __init__(self, like: Tensor) -> None:
        self.strongest, self.change = torch.zeros_like(like), torch.zeros_like(like)
        self.worst, self.of_largest = torch.zeros_like(like, dtype=torch.float64), 0.0

    def add(self, gradient: Tensor, change: Tensor) -> None:
        self.strongest, self.change = (
            torch.maximum(self.strongest, gradient.abs()),
            torch.maximum(self.change, change),
        )
        moved = self.change[self.change > 0].double()
        typical = float(moved.square().mean().sqrt()) if moved.numel() else 0.0
        share = (
            self.change.double().clamp(min=typical) / self.strongest.double()
        )  # infinite where the gradient is 0 by chance
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
        """Moves every element of the parameters by one rounding of what products are in, up or
        down at random."""
        generator = torch.Generator().manual_seed(self.seed)
        for parameter in self.parameters.values():
            signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            parameter.data *= 1 + torch.finfo(self.compute).eps * signs.to(parameter.dtype)

    def step(self, step: int) -> float:
        """The loss of a step, whose gradients, clipped, the parameters then have."""
        self.optimizer.zero_grad()
        with alone():  # a model that reduces by itself would wait for ranks that do not take part
            with Random(step_key(self.seed, step)), precision(self.workload.compute):
                loss, _ = self.workload.loss_of(self.batch)
            loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self.parameters.values():
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = (
                    parameter.grad.to_dense()
                )  # fused optimizers take no others; to plain SGD it is the same
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
    """Gives a workload the values of another of the same model: a builder may draw from a
    generator that goes on."""
    values = full_tensors(began)
    for name, tensor in full_tensors(workload).items():
        if not torch.equal(tensor, values[name]):
            tensor.copy_(values[name])


def compare(
    losses: Sequence[float],
    gradients: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    reference: Reference,
    buffers: Mapping[str, Tensor] | None = None,
) -> Verification:
    """How far a run is from the reference; `buffers` are those that the step changes."""
    limit = reference.limit
    floors = {
        name: MARGIN * largest(rounding) / limit for name, rounding in reference.rounding.items()
    }
    allowed = {name: _allowance(name, gradients, reference) for name in parameters}
    left_out = {
        name: allowed[name] > limit * largest(reference.parameters[name]) for name in parameters
    }
    near = {
        name: torch.where(
            left_out[name],
            _nearer(ours.cpu(), reference.parameters[name], allowed[name]),
            ours.cpu().double(),
        )
        for name, ours in parameters.items()
    }
    buffer_floors = {
        name: MARGIN * rounding / limit for name, rounding in reference.buffer_rounding.items()
    }
    loss = worst_of("loss", _by_step(losses), _by_step(reference.losses), _loss_floors(reference))
    gradient = worst_of("gradient", gradients, reference.gradients, floors)
    parameter = worst_of("parameter", near, reference.parameters, {}, shown=parameters)
    buffer = worst_of("buffer", buffers or {}, reference.parameters, buffer_floors)
    worst = tuple(
        sorted(filter(None, (loss, gradient, parameter, buffer)), key=lambda one: -one.error)
    )
    num_left_out = sum(int(mask.sum()) for mask in left_out.values())
    num_elements = sum(tensor.numel() for tensor in parameters.values())
    return Verification(
        verdict=judge(
            worst,
            limit=limit,
            same=_same(losses, gradients, {**parameters, **(buffers or {})}, reference),
            left_out=num_left_out / max(num_elements, 1),
            vanished=bool(gradients)
            and all(
                largest(reference.gradients[n]) <= floors.get(n, 0.0) * limit for n in gradients
            ),
        ),
        worst=worst,
        limit=limit,
        loss_error=loss.error if loss else 0.0,
        gradient_error=gradient.error if gradient else 0.0,
        parameter_error=parameter.error if parameter else 0.0,
        buffer_error=buffer.error if buffer else 0.0,
        worst_gradient=gradient.name if gradient else "",
        worst_parameter=parameter.name if parameter else "",
        worst_buffer=buffer.name if buffer else "",
        num_left_out=num_left_out,
        num_elements=num_elements,
    )


def _by_step(losses: Sequence[float]) -> dict[str, Tensor]:
    return {
        f"of step {number}": torch.tensor(loss, dtype=torch.float64)
        for number, loss in enumerate(losses, start=1)
    }


def _loss_floors(reference: Reference) -> dict[str, float]:
    pairs = enumerate(reference.loss_rounding, start=1)
    return {f"of step {number}": MARGIN * rounding / reference.limit for number, rounding in pairs}


def _same(
    losses: Sequence[float],
    gradients: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    reference: Reference,
) -> bool:
    """Whether a run gave the very numbers."""
    pairs = [(g, reference.gradients[n]) for n, g in gradients.items()] + [
        (t, reference.parameters[n]) for n, t in state.items()
    ]
    return tuple(losses) == reference.losses and all(
        torch.equal(ours.cpu(), theirs.cpu()) for ours, theirs in pairs
    )


def _allowance(name: str, gradients: Mapping[str, Tensor], reference: Reference) -> Tensor:
    """How far each element of a parameter may be from the reference.

    An optimizer that divides the gradient by its size moves an element by up to r = doubt times as
    far as it moves, and the other way at worst: min(MARGIN r, 2) moved. Of a tensor that is all
    noise, too small to be divided by its size (Adam's epsilon), every element moves in proportion
    to it: by MARGIN noise, but not more than 2 times as far as any tensor has moved. An element
    that never has a gradient in the reference, rounded or not, may move as noise does if it has one
    in the run.
    """
    doubt, moved = reference.doubt.get(name), reference.moved.get(name, 0.0)
    if doubt is None:
        return torch.zeros_like(reference.parameters[name], dtype=torch.float64)
    if name in gradients:
        doubt = doubt.masked_fill(
            (doubt == 0) & (gradients[name].cpu() != 0) & (reference.noise[name] > 0), float("inf")
        )
    most = max(
        2 * moved, min(MARGIN * reference.noise[name] * moved, 2 * max(reference.moved.values()))
    )
    return (MARGIN * doubt * moved).clamp(max=most)


def _nearer(ours: Tensor, theirs: Tensor, allowed: Tensor) -> Tensor:
    """Our tensor, each element moved towards theirs by what is allowed, at most to it."""
    difference = ours.double() - theirs.double()
    return theirs.double() + difference.sign() * (difference.abs() - allowed).clamp(min=0.0)


def _far(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest |a - b| of each tensor."""
    return {name: largest(tensor.double() - theirs[name].double()) for name, tensor in ours.items()}
