"""The `Workload`: a model, an example batch and a loss, from a built-in name or from the user's `module:function`.

model name, sizes -> Workload. The same builder serves planning (called under fake tensors, no memory) and running.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Workload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is trained: `loss(module(*batch[:-1]), batch[-1])` is the scalar that one step differentiates.

    `batch` holds the model's inputs and, last, the target; dim 0 of each is the batch. `options` are all sizes as resolved.
    `dim_names` gives the sub-dims of parameters the model's own words: a glob of parameter names to one comma list of
    sub-dim names for each dim, as in `{"h.*.attn.qkv.weight": ("three,heads,head_dim", "embed")}`.
    """

    name: str
    module: torch.nn.Module
    batch: tuple[torch.Tensor, ...]
    loss: Callable[[Any, torch.Tensor], torch.Tensor]
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    options: Mapping[str, Any] = field(default_factory=dict)
    dim_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tokens_per_sample: int = 1
