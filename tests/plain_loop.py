"""Training in plain torch, written apart from the product: what a plan's run is held against."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Plain", "plain_training", "seeded"]

Make = Callable[[], tuple[nn.Module, Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The losses of all steps, the gradients of the first, and parameters and buffers after the last, by name."""

    losses: tuple[float, ...]
    gradients: Mapping[str, Tensor]
    state: Mapping[str, Tensor]


def seeded(make: Make, seed: int = 0) -> tuple[nn.Module, Any, Any]:
    """What the builder makes from a seed of every generator."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    return make()


def plain_training(make: Make, steps: int, dtype: torch.dtype = torch.float64, learning_rate: float = 1e-3) -> Plain:
    """`steps` of Adam on the example batch, in `dtype`."""
    module, batch, loss = seeded(make)
    module.to(dtype)
    parts = [module, *([loss] if isinstance(loss, nn.Module) else [])]
    parts[-1].to(dtype)
    *inputs, target = (t.to(dtype) if t.is_floating_point() else t for t in batch)
    named = {f"loss.{n}" if number else n: p for number, part in enumerate(parts) for n, p in part.named_parameters()}
    optimizer = torch.optim.Adam(named.values(), lr=learning_rate)
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(module(*inputs), target)
        value = sum(value.values()) if isinstance(value, dict) else value  # several, by name
        value.backward()
        gradients = gradients or {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
        optimizer.step()
        losses.append(float(value.detach()))
    buffers = {f"loss.{n}" if number else n: b for number, part in enumerate(parts) for n, b in part.named_buffers()}
    held = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}  # what it does not register
    state = {name: tensor.detach().clone() for name, tensor in {**held, **named, **buffers}.items()}
    return Plain(losses=tuple(losses), gradients=gradients, state=state)
