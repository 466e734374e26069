"""`shardwright::masked_attention` and its backward: softmax(scale q k^T + bias) v; a boolean bias
says which keys count.

Like `attention`, with a bias that broadcasts to [B, H, T, S] over heads, queries or the batch:
padding masks, sliding windows, learned relative positions. A query that may see no key gets zeros.
The bias gets a gradient only if asked for.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from planner.kernels.attention import has_cpu_kernel
from planner.kernels.attention_gradients import cpu_backward
from planner.kernels.heads import (
    empty_heads_inside,
    grouped,
    heads_inside,
    lse_dtype,
    rows_together,
    scores_of,
    sum_groups,
)

__all__ = ["masked_attention", "masked_attention_backward"]

#: An lse up to this has an absolute error of 2^-18 in float32, which becomes the relative error of
#: the weights computed from it.
_LARGE = 64.0


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The output [B, H, T, D] and lse [B, H, T], which is arbitrary for a query that may see no
    key."""
    k, v = grouped(k, q), grouped(v, q)
    if has_cpu_kernel(q, k, v):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal, attn_mask=_added(bias, q.dtype), scale=scale
        )
        return heads_inside(out), lse
    scores = _biased(q, k, bias, is_causal, scale)
    lse = torch.logsumexp(scores, -1)
    out = torch.matmul(_softmax(scores), v.to(scores.dtype)).to(q.dtype)
    return heads_inside(out), lse


def masked_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v and, if `wanted`, of the bias (else a single zero)."""
    num_kv_heads = k.shape[1]
    wide_k, wide_v = grouped(k, q), grouped(v, q)
    if not wanted and has_cpu_kernel(q, wide_k, wide_v) and _tells_scores(lse):
        gq, gk, gv = cpu_backward(
            rows_together(grad),
            q,
            wide_k,
            wide_v,
            rows_together(out),
            lse,
            is_causal,
            scale,
            partial(_added, bias),
        )
        gk, gv = sum_groups(gk, num_kv_heads), sum_groups(gv, num_kv_heads)
        return heads_inside(gq), heads_inside(gk), heads_inside(gv), grad.new_zeros(1)
    wide_k, wide_v = wide_k.to(lse.dtype), wide_v.to(lse.dtype)
    scores = _biased(q, wide_k, bias, is_causal, scale)
    weights = scores.sub_(lse[..., None]).exp_() if _tells_scores(lse) else _softmax(scores)
    wide = grad.to(lse.dtype)
    delta = (wide * out).sum(-1, keepdim=True)
    grad_scores = torch.matmul(wide, wide_v.mT).sub_(delta).mul_(weights)
    grad_bias = grad_scores.sum_to_size(bias.shape).to(bias.dtype) if wanted else grad.new_zeros(1)
    gq, gk = (
        torch.matmul(grad_scores, wide_k) * scale,
        torch.matmul(grad_scores.mT, q.to(lse.dtype)) * scale,
    )
    gk, gv = sum_groups(gk, num_kv_heads), sum_groups(torch.matmul(weights.mT, wide), num_kv_heads)
    return (
        heads_inside(gq.to(q.dtype)),
        heads_inside(gk.to(k.dtype)),
        heads_inside(gv.to(v.dtype)),
        grad_bias,
    )


def _biased(q: Tensor, k: Tensor, bias: Tensor, is_causal: bool, scale: float) -> Tensor:
    scores = scores_of(q, k, is_causal, scale)
    return (
        scores.masked_fill_(~bias, float("-inf")) if bias.dtype == torch.bool else scores.add_(bias)
    )


def _added(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias as the flash kernel takes it: a tensor of four dims to add to the scores."""
    if bias.dtype == torch.bool:
        bias = torch.zeros(bias.shape, dtype=dtype, device=bias.device).masked_fill_(
            ~bias, float("-inf")
        )
    return bias.to(dtype)[(None,) * (4 - bias.dim())]


def _tells_scores(lse: Tensor) -> bool:
    """Whether exp(scores - lse) is the softmax to within rounding. That needs an lse no larger than
    scores usually are: if every key of a query has a bias of -1e38, as libraries write a mask, the
    logarithm of the sum is lost in lse. False off the CPU, where looking would have to wait."""
    return lse.device.type == "cpu" and bool(lse.abs().amax() <= _LARGE)


def _softmax(scores: Tensor) -> Tensor:
    """The softmax; zeros for a query whose keys are all hidden."""
    return torch.where(
        (scores.amax(-1) == float("-inf"))[..., None], 0.0, torch.softmax(scores, -1)
    )


@torch.library.custom_op("shardwright::masked_attention", mutates_args=())
def _masked_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    return masked_attention(q, k, v, bias, is_causal, scale)


@torch.library.custom_op("shardwright::masked_attention_backward", mutates_args=())
def _masked_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return masked_attention_backward(grad, q, k, v, bias, out, lse, is_causal, scale, wanted)


@_masked_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    batch, heads, length, _ = q.shape
    out = q.new_empty(batch, length, heads, v.shape[3]).transpose(1, 2)
    return out, q.new_empty(batch, heads, length, dtype=lse_dtype(q))


@_masked_attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    grad_bias = torch.empty_like(bias) if rest[-1] else grad.new_empty(1)
    return (*(empty_heads_inside(t) for t in (q, k, v)), grad_bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, bias, ctx.is_causal, ctx.scale = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, bias, out, lse)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    wanted = bool(ctx.needs_input_grad[3])
    *grads, bias = torch.ops.shardwright.masked_attention_backward(
        grad, *ctx.saved_tensors, ctx.is_causal, ctx.scale, wanted
    )
    return (*grads, bias if wanted else None, None, None)


_masked_attention.register_autograd(_differentiate, setup_context=_save)
