"""Calls of `torch.nn.functional` as calls of our ops: attention, cross-entropy, norms, one-hot."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "SDPA", "attention_call", "batch_norm_call", "cross_entropy_call", "one_hot_call",
    "rms_norm_call",
]  # fmt: skip


SDPA = F.scaled_dot_product_attention


def one_hot_call(input: Tensor, num_classes: int = -1) -> Tensor:
    """`F.one_hot` without torch's check of the values, which fake tensors lack."""
    if num_classes < 1 or input.dtype != torch.int64:
        return F.one_hot(input, num_classes)
    return F.one_hot(torch.ops.shardwright.checked_ids(input, num_classes, False), num_classes)


_CROSS_ENTROPY = inspect.signature(F.cross_entropy)


def cross_entropy_call(*args: Any, **kwargs: Any) -> Tensor:
    """`F.cross_entropy` as a sum by our op, divided by the number of targets that count. Class
    weights, label smoothing, unreduced losses and targets that are not ids are left to torch."""
    call = _CROSS_ENTROPY.bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    logits, target, reduction = given["input"], given["target"], given["reduction"]
    extras = (
        any(given[name] is not None for name in ("weight", "size_average", "reduce"))
        or given["label_smoothing"]
    )
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


def attention_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` by our ops; left to torch with dropout, or if anything but
    key heads has to be broadcast."""
    if dropout_p or query.dim() not in (3, 4) or not _fit(query, key, value, enable_gqa):
        return SDPA(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    q, k, v = (t if t.dim() == 4 else t.unsqueeze(-3) for t in (query, key, value))
    if attn_mask is None:
        out, _ = torch.ops.shardwright.attention(q, k, v, is_causal, scale)
    else:
        bias = attn_mask if query.dim() == 4 or attn_mask.dim() < 3 else attn_mask.unsqueeze(-3)
        out, _ = torch.ops.shardwright.masked_attention(
            q, k, v, bias[(None,) * (4 - bias.dim())], is_causal, scale
        )
    return out if query.dim() == 4 else out.squeeze(-3)  # type: ignore[no-any-return]


def _fit(query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> bool:
    """Whether at most key heads have to be broadcast."""
    if (
        not query.dim() == key.dim() == value.dim()
        or query.shape[0] != key.shape[0]
        or key.shape[:-1] != value.shape[:-1]
    ):
        return False
    heads, kv_heads = query.shape[-3], key.shape[-3]
    return heads == kv_heads or (grouped and query.dim() == 4 and heads % kv_heads == 0)


_BATCH_NORM = inspect.signature(F.batch_norm)


def batch_norm_call(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    """`F.batch_norm`. In training, the statistics are those of the whole batch, over all its
    shards; the running ones are written by `copy_`, which the trace reads as their new value."""
    if func is torch.batch_norm:
        x, weight, bias, mean, var, training, momentum, eps, _ = args
    else:
        call = _BATCH_NORM.bind(*args, **kwargs)
        call.apply_defaults()
        x, mean, var, weight, bias, training, momentum, eps = call.arguments.values()
    if not training:
        return func(*args, **kwargs)  # type: ignore[no-any-return]
    out, _, _, new_mean, new_var = torch.ops.shardwright.batch_norm(
        x, weight, bias, mean, var, momentum, eps
    )
    if mean is not None and var is not None:
        mean.copy_(new_mean)
        var.copy_(new_var)
    return out  # type: ignore[no-any-return]


def rms_norm_call(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """`F.rms_norm`. torch has a kernel for operands of one dtype; it decomposes the norm itself if
    they differ."""
    dims, count = len(normalized_shape), math.prod(normalized_shape)
    same = weight is None or weight.dtype == input.dtype
    if (
        not same
        or not dims
        or tuple(normalized_shape) != tuple(input.shape[-dims:])
        or not input.is_floating_point()
    ):
        return F.rms_norm(input, list(normalized_shape), weight, eps)
    # torch's default is the epsilon of the dtype that it sums in.
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    eps = torch.finfo(wide).eps if eps is None else eps
    out: Tensor = torch.ops.shardwright.rms_norm(input, weight, dims, count, eps)[0]
    return out
