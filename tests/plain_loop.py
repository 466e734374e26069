"""Training in plain torch, written apart from the product: what a plan's run is held against."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.kernels import dropout, step_key

__all__ = ["Plain", "plain_training", "seeded"]

Make = Callable[[], tuple[nn.Module, Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The losses of all steps, the gradients of the first, and parameters and buffers after the
    last, by name."""

    losses: tuple[float, ...]
    gradients: Mapping[str, Tensor]
    state: Mapping[str, Tensor]


def seeded(make: Make, seed: int = 0) -> tuple[nn.Module, Any, Any]:
    """What the builder makes from a seed of every generator."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    return make()


@contextmanager
def masks_of(step: int) -> Iterator[None]:
    """Dropout in plain torch, by the masks of a step's key, numbered in the order in which they
    are first drawn. Where a checkpoint computes a block again, what is dropped then is known by
    its values, and gets the mask that it had."""
    numbers: dict[bytes, int] = {}
    attention = F.scaled_dot_product_attention

    def drop(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or not p:
            return x
        number = numbers.setdefault(x.detach().numpy().tobytes(), len(numbers))
        kept = dropout(torch.ones(x.shape), step_key(0, step), p, number)[1]
        return torch.where(kept, x / (1 - p), 0.0)

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **more: Any,
    ) -> Tensor:
        if not dropout_p:
            return attention(query, key, value, attn_mask, dropout_p, is_causal, **more)
        assert attn_mask is None
        assert not more
        scores = query @ key.mT / query.shape[-1] ** 0.5
        hidden = (
            torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            if is_causal
            else torch.zeros((), dtype=torch.bool)
        )
        return drop(scores.masked_fill(hidden, float("-inf")).softmax(-1), dropout_p) @ value

    with patch.object(F, "dropout", drop), patch.object(F, "scaled_dot_product_attention", attend):
        yield


def plain_training(
    make: Make, steps: int, dtype: torch.dtype = torch.float64, learning_rate: float = 1e-3
) -> Plain:
    """`steps` of Adam on the example batch, in `dtype`; what is dropped is what the keys of the
    steps say."""
    module, batch, loss = seeded(make)
    module.to(dtype)
    parts = [module, *([loss] if isinstance(loss, nn.Module) else [])]
    parts[-1].to(dtype)
    *inputs, target = (t.to(dtype) if t.is_floating_point() else t for t in batch)
    named = {
        f"loss.{n}" if number else n: p
        for number, part in enumerate(parts)
        for n, p in part.named_parameters()
    }
    optimizer = torch.optim.Adam(named.values(), lr=learning_rate)
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    for step in range(steps):
        optimizer.zero_grad()
        with masks_of(step):
            value = loss(module(*inputs), target)
            value = sum(value.values()) if isinstance(value, dict) else value  # several, by name
            value.backward()
        gradients = gradients or {
            name: p.grad.clone() for name, p in named.items() if p.grad is not None
        }
        optimizer.step()
        losses.append(float(value.detach()))
    buffers = {
        f"loss.{n}" if number else n: b
        for number, part in enumerate(parts)
        for n, b in part.named_buffers()
    }
    # Tensors that the module does not register.
    held = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
    state = {name: tensor.detach().clone() for name, tensor in {**held, **named, **buffers}.items()}
    return Plain(losses=tuple(losses), gradients=gradients, state=state)
