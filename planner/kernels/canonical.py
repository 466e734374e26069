"""While `Canonical` is active, torch's LSTM, cross-entropy and attention become ours: tracing shows one node of each.

What they have and ours do not (masks, class weights, label smoothing) is left to torch, or refused where that would give another
graph on another platform.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cost_models.errors import NotTraceable
from planner.kernels.random import Random

__all__ = ["Canonical"]

_SDPA = F.scaled_dot_product_attention


class Canonical(Random):
    """Redirects LSTM, cross-entropy, attention and batch norm to `shardwright::` ops, and dropout as `Random` does."""

    in_place = False  # a graph has no places; should the operand be read again, verifying a run shows it

    def other(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if func is torch.lstm:
            return _lstm(*args, **kwargs)
        if func is F.cross_entropy:
            return _cross_entropy(*args, **kwargs)
        if func is _SDPA:
            return _attention(*args, **kwargs)
        if func in (F.batch_norm, torch.batch_norm):
            return _batch_norm(func, *args, **kwargs)
        return func(*args, **kwargs)


def _lstm(x: Tensor, second: Any, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.lstm` as nn.LSTM calls it: layer by layer, direction by direction."""
    if isinstance(second, Tensor):
        raise NotTraceable("nn.LSTM on a packed sequence is not supported: pad the batch to one length and pass the tensor")
    weights, has_biases, num_layers, dropout, training, bidirectional, batch_first = rest
    assert not (dropout and training and num_layers > 1), "`Random` takes dropout out"
    if weights[1].shape[1] * 4 != weights[1].shape[0]:
        raise NotTraceable("nn.LSTM with proj_size is not supported: set proj_size=0")
    h0, c0 = second
    num_directions, per = 1 + bidirectional, 2 + 2 * has_biases
    y, last = x.transpose(0, 1) if batch_first else x, []
    for layer in range(num_layers):
        outs = []
        for direction in range(num_directions):
            at = layer * num_directions + direction
            mine = weights[at * per : (at + 1) * per]
            out, h, c = _direction(y, h0[at], c0[at], mine, backwards=direction == 1)
            outs.append(out)
            last.append((h, c))
        y = torch.cat(outs, -1) if bidirectional else outs[0]
    states = [torch.stack([pair[i] for pair in last]) for i in (0, 1)]
    return y.transpose(0, 1) if batch_first else y, states[0], states[1]


def _direction(x: Tensor, h0: Tensor, c0: Tensor, weights: Sequence[Tensor], backwards: bool) -> tuple[Tensor, Tensor, Tensor]:
    biases = weights[2:] or (None, None)
    y, h, c, _ = torch.ops.shardwright.lstm(x.flip(0) if backwards else x, h0, c0, *weights[:2], *biases)
    return y.flip(0) if backwards else y, h, c


_CROSS_ENTROPY = inspect.signature(F.cross_entropy)


def _cross_entropy(*args: Any, **kwargs: Any) -> Tensor:
    call = _CROSS_ENTROPY.bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    logits, target, reduction = given["input"], given["target"], given["reduction"]
    extras = any(given[name] is not None for name in ("weight", "size_average", "reduce")) or given["label_smoothing"]
    if extras or reduction == "none" or target.dtype != torch.int64 or logits.dim() < 2:
        return F.cross_entropy(*args, **kwargs)
    if logits.dim() > 2:
        logits = logits.movedim(1, -1).reshape(-1, logits.shape[1])
        target = target.reshape(-1)
    loss, _ = torch.ops.shardwright.cross_entropy(logits, target, given["ignore_index"])
    out: Tensor = loss
    if reduction == "mean":
        out = loss / torch.ops.shardwright.count_targets(target, given["ignore_index"])
    return out.to(logits.dtype)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    same_heads = query.dim() == 4 and query.shape[:2] == key.shape[:2] == value.shape[:2]
    if attn_mask is not None or dropout_p or not same_heads:
        return _SDPA(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    out, _ = torch.ops.shardwright.attention(query, key, value, is_causal, scale)
    return out  # type: ignore[no-any-return]


_BATCH_NORM = inspect.signature(F.batch_norm)


def _batch_norm(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    """Of a batch in training: its own statistics, over all its shards; the running ones are written by `copy_`, which the trace
    reads as their new value."""
    if func is torch.batch_norm:
        x, weight, bias, mean, var, training, momentum, eps, _ = args
    else:
        call = _BATCH_NORM.bind(*args, **kwargs)
        call.apply_defaults()
        x, mean, var, weight, bias, training, momentum, eps = call.arguments.values()
    if not training:
        return func(*args, **kwargs)  # type: ignore[no-any-return]
    out, _, _, new_mean, new_var = torch.ops.shardwright.batch_norm(x, weight, bias, mean, var, momentum, eps)
    if mean is not None and var is not None:
        mean.copy_(new_mean)
        var.copy_(new_var)
    return out  # type: ignore[no-any-return]
