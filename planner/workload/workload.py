"""The `Workload`: a model, an example batch and a loss, as one training step needs them.

The same builder serves planning (called under fake tensors, no memory) and running.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from cost_models.errors import BadValue
from planner.kernels.clip import CLIP_EPSILON
from planner.kernels.precision import precision
from planner.models.reported import Reported
from planner.state.state import State, state_of
from planner.workload.batches import arguments
from planner.workload.precision import PLAIN, Formats

__all__ = ["Workload", "unused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The training: one step differentiates the scalar `loss(module(*batch[:-1]), batch[-1])`; if
    that is several losses, by name in a dict or by number in a tuple, their sum.

    `batch` holds the model's inputs and, last, the target; dim 0 of each is the batch. A nested
    batch is given by its tensors and its `nest` (`batches.py`). `compute` is the dtype of products
    in mixed precision, empty if it is that of the parameters; `formats` has the optimizer's and
    that of gradients. Gradients whose norm, over all of them, is larger than `clip_norm` are scaled
    down to it, by the norm plus `clip_epsilon`. `optimizer_settings` are the optimizer's own, over
    those that its name implies; `options` are all sizes as resolved. `dim_names` gives the sub-dims
    of parameters the model's own words: a glob of parameter names to one comma list of sub-dim
    names for each dim, as in `{"h.*.attn.qkv.weight": ("three,heads,head_dim", "embed")}`; the
    first glob that fits a name counts. Batch norms in training take their statistics over each of
    `norm_parts` equal parts of the batch.
    """

    name: str
    module: torch.nn.Module
    batch: tuple[torch.Tensor, ...]
    loss: Callable[[Any, Any], Any]
    nest: Any = None
    compute: str = ""
    formats: Formats = PLAIN
    clip_norm: float | None = None
    clip_epsilon: float = CLIP_EPSILON
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    optimizer_settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    dim_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tokens_per_sample: int = 1
    norm_parts: int = 1

    def arguments(
        self, batch: Sequence[torch.Tensor]
    ) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """The module's arguments for these tensors, by position and by name, and the target."""
        return (
            (tuple(batch[:-1]), {}, batch[-1]) if self.nest is None else arguments(self.nest, batch)
        )

    def state(self) -> State:
        """The tensors that a step reads beside its batch, as they are now."""
        return state_of(self.module, self.loss)

    def precision(self) -> AbstractContextManager[None]:
        """The context in which a step computes outputs and losses."""
        return precision(self.compute, wide_losses=bool(self.formats.master))

    def losses(self, outputs: Any, target: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The scalar to differentiate and, if it is a sum of several losses, these by name."""
        found = self.loss(outputs, target)
        if isinstance(found, Reported):
            return found.loss, dict(found.parts)
        if isinstance(found, tuple | list):
            found = {f"loss_{number}": loss for number, loss in enumerate(found)}
        if not isinstance(found, Mapping):
            return found, {}
        if not found:
            raise BadValue(
                f"the loss of {self.name!r} returned no losses: return one scalar, or several by name"
            )
        return sum(found.values()), dict(found)  # type: ignore[return-value]

    def loss_of(
        self, batch: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`losses` of the module on these tensors, in plain torch."""
        inputs, named, target = self.arguments(batch)
        return self.losses(self.module(*inputs, **named), target)


def unused(module: torch.nn.Module, trained: Iterable[str]) -> tuple[str, ...]:
    """The names of the parameters that are neither in `trained` nor frozen."""
    names = set(trained)
    return tuple(
        name for name, p in module.named_parameters() if p.requires_grad and name not in names
    )
