"""Plain training in one process, which a run is compared with: losses, gradients, parameters, and
how far rounding alone moves them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planner.program.program import Program
from planner.stages.pipeline import Pipeline
from planner.workload.workload import Workload
from runtime.loss_scale import FIRST_SCALE
from runtime.plain_trainer import PlainTrainer, Scaled
from runtime.verdict import largest

__all__ = ["Doubt", "Reference", "reference_run"]


#: The relative error up to which a run counts as equal, by the coarsest dtype of its products and
#: gradients.
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
    element of a parameter that it has moved most. `limit` is the dtype's. If the loss is scaled,
    `scales` has the scale after every step, and the first gradients are those of the first step
    that is not skipped.
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
    scales: tuple[float, ...] = ()


def reference_run(
    make: Callable[[], Workload],
    program: Program | Pipeline,
    *,
    seed: int,
    num_steps: int,
    began: Workload | None = None,
    scales: Sequence[float] = (),
) -> Reference:
    """`num_steps` of plain training in this process, in the program's dtypes, with the same dropout
    masks. If `began` is given, it starts from that run's values and batch, since building the model
    again might give others. `scales` are the run's after every step, if its loss is scaled: a step
    that it skipped is skipped here too, if rounding may explain that."""
    trainer = PlainTrainer(make, program, seed, began)
    rounded = PlainTrainer(make, program, seed, began or trainer.workload)
    rounded.move_by_a_rounding()
    before = {name: tensor.detach().clone() for name, tensor in trainer.updated.items()}
    losses: list[float] = []
    found_scales: list[float] = []
    loss_rounding: list[float] = []
    gradients: dict[str, Tensor] = {}
    rounding: dict[str, Tensor] = {}
    doubts: dict[str, Doubt] = {}
    for step in range(num_steps):
        run = _scaled(program, (FIRST_SCALE, *scales), step) if scales else None
        losses.append(trainer.step(step, run))
        loss_rounding.append(abs(rounded.step(step, run) - losses[-1]))
        found, other = trainer.gradients(), rounded.gradients()
        found_scales += [trainer.scale] if trainer.scaler.is_enabled() else []
        change = {n: (other[n] - g).abs() for n, g in found.items() if n in other}
        if len(change) < len(found):
            continue  # one of the two has skipped the step
        gradients, rounding = gradients or found, rounding or change
        for name, gradient in found.items():
            doubts.setdefault(name, Doubt(gradient)).add(gradient, change[name])
    return Reference(
        losses=tuple(losses),
        loss_rounding=tuple(loss_rounding),
        gradients=gradients,
        parameters=trainer.state(),
        rounding=rounding,
        doubt={name: doubt.worst for name, doubt in doubts.items()},
        noise={name: doubt.of_largest for name, doubt in doubts.items()},
        moved={
            name: largest(tensor.detach() - before[name])
            for name, tensor in trainer.updated.items()
        },
        buffer_rounding=_far(rounded.buffers(), trainer.buffers()),
        scales=tuple(found_scales),
        limit=LIMITS.get(trainer.coarsest, COARSE),
    )


def _scaled(program: Program | Pipeline, scales: Sequence[float], step: int) -> Scaled:
    """A step of a run, by the scales before and after each."""
    before, after = scales[step : step + 2]
    return Scaled(scale=before, skipped=after < before, num_parts=program.num_parts)


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


def _far(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest |a - b| of each tensor."""
    return {name: largest(tensor.double() - theirs[name].double()) for name, tensor in ours.items()}
