"""`--verify`: how far a run is from the same steps in one process (`reference`), and whether
rounding explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.reference import Reference
from runtime.verdict import Apart, judge, largest, worst_of

__all__ = ["Verification", "compare"]


#: A run may be this many times as far from the reference as a rounding of the parameters moves it.
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


def compare(
    losses: Sequence[float],
    gradients: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    reference: Reference,
    buffers: Mapping[str, Tensor] | None = None,
    scales: Sequence[float] = (),
) -> Verification:
    """The comparison of a run with the reference; `buffers` are those that the step changes,
    `scales` the loss's scales after every step, if it is scaled: one that differs is wrong, since
    a step was skipped in only one of the two."""
    limit = reference.limit
    gradients = {name: g for name, g in gradients.items() if name in reference.gradients}
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
    scale = worst_of("loss scale", _by_step(scales), _by_step(reference.scales), {})
    worst = tuple(
        sorted(filter(None, (loss, gradient, parameter, buffer, scale)), key=lambda one: -one.error)
    )
    num_left_out = sum(int(mask.sum()) for mask in left_out.values())
    num_elements = sum(tensor.numel() for tensor in parameters.values())
    return Verification(
        verdict=judge(
            worst,
            limit=limit,
            same=_same(losses, gradients, {**parameters, **(buffers or {})}, reference),
            left_out=num_left_out / max(num_elements, 1),
            vanished=bool(gradients or scales)
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
    """Whether a run gave exactly the reference's numbers."""
    pairs = [(g, reference.gradients[n]) for n, g in gradients.items()] + [
        (t, reference.parameters[n]) for n, t in state.items()
    ]
    return tuple(losses) == reference.losses and all(
        torch.equal(ours.cpu(), theirs.cpu()) for ours, theirs in pairs
    )


def _allowance(name: str, gradients: Mapping[str, Tensor], reference: Reference) -> Tensor:
    """How far each element of a parameter may be from the reference.

    If an optimizer divides the gradient by its size, noise changes an element's movement by up to a
    share r = doubt of it and, at worst, reverses it: min(MARGIN r, 2) moved. If a tensor's gradient
    is all noise, too small to be divided by its size (Adam's epsilon), every element moves in
    proportion to it: by MARGIN noise, but at most twice as far as any tensor has moved. An element
    without a gradient in the reference, rounded or not, may move like noise if it has one in the
    run.
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
    """Our tensor, with each element moved towards theirs by at most `allowed`."""
    difference = ours.double() - theirs.double()
    return theirs.double() + difference.sign() * (difference.abs() - allowed).clamp(min=0.0)
