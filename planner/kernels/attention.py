"""`shardwright::attention` and its backward: softmax(scale q k^T) v, by the device's flash kernel
if it has one.

q [B, H, T, D], k and v [B, K, S, D], where K divides H (grouped queries: H/K heads of q read one
of k); lse [B, H, T] is the log of the softmax's denominator. Causal means key <= query, both
counted from 0. Results are laid out in memory as [B, T, H, D]: joining the heads copies nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from planner.kernels.attention_gradients import (
    better_wide,
    cpu_backward,
    efficient_backward,
    flash_backward,
    math_backward,
)
from planner.kernels.heads import (
    empty_heads_inside,
    grouped,
    heads_inside,
    lse_dtype,
    rows_together,
    scores_of,
    sum_groups,
)

__all__ = ["attention", "attention_backward", "has_cpu_kernel"]


def attention(
    q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The output [B, H, T, D] and lse."""
    kernel = _kernel(q, k, v, is_causal)
    k, v = grouped(k, q), grouped(v, q)
    if kernel == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal, scale=scale
        )
    elif kernel == "flash":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(
            q, k, v, 0.0, is_causal, False, scale=scale
        )[:2]
    elif kernel == "efficient":
        out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, is_causal, scale=scale
        )[:2]
        lse = lse[..., : q.shape[2]]
    else:
        scores = scores_of(q, k, is_causal, scale)
        lse = torch.logsumexp(scores, -1)
        out = torch.matmul(torch.exp(scores - lse[..., None]), v.to(scores.dtype)).to(q.dtype)
    return heads_inside(out), lse


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    kernel = _kernel(q, k, v, is_causal)
    # Widened here, so that shared key heads are cast and summed once.
    if kernel == "cpu" and better_wide(q):
        wide = [t.float() for t in (grad, q, k, v, out)]
        gq, gk, gv = attention_backward(
            wide[0], wide[1], wide[2], wide[3], wide[4], lse, is_causal, scale
        )
        return gq.to(q.dtype), gk.to(q.dtype), gv.to(q.dtype)
    grad, out = rows_together(grad), rows_together(out)
    num_kv_heads = k.shape[1]
    k, v = grouped(k, q), grouped(v, q)
    if kernel == "cpu":
        grads = cpu_backward(grad, q, k, v, out, lse, is_causal, scale)
    elif kernel == "flash":
        grads = flash_backward(grad, q, k, v, out, lse, is_causal, scale)
    elif kernel == "efficient":
        grads = efficient_backward(grad, q, k, v, out, lse, is_causal, scale)
    else:
        grads = math_backward(grad, q, k, v, out, lse, is_causal, scale)
    gk, gv = sum_groups(grads[1], num_kv_heads), sum_groups(grads[2], num_kv_heads)
    return heads_inside(grads[0]), heads_inside(gk), heads_inside(gv)


def _kernel(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> str:
    """Which kernel runs: `cpu`, `flash`, `efficient` or `math`; the same for forward and
    backward. CUDA's flash kernel needs compute capability 8.0, and aligns a causal mask with the
    last key if there are more or fewer keys than queries."""
    plain = _is_plain(q, k, v)
    half = q.dtype in (torch.float16, torch.bfloat16)
    if has_cpu_kernel(q, k, v):
        return "cpu"
    if not plain or not q.is_cuda:
        return "math"
    newer = _capability(q.device) >= (8, 0)
    if (
        newer
        and half
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 256
        and not (is_causal and q.shape[2] != k.shape[2])
    ):
        return "flash"
    known = q.dtype in (torch.float32, torch.float16) or (newer and q.dtype == torch.bfloat16)
    return "efficient" if known and q.shape[-1] % (8 if half else 4) == 0 else "math"


def has_cpu_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the CPU's flash kernel takes these."""
    return (
        q.device.type == "cpu"
        and q.dtype in (torch.float32, torch.float64, torch.bfloat16)
        and _is_plain(q, k, v)
    )


def _is_plain(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return q.shape[-1] == k.shape[-1] == v.shape[-1] and all(t.stride(-1) == 1 for t in (q, k, v))


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@torch.library.custom_op("shardwright::attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    return attention(q, k, v, is_causal, scale)


@torch.library.custom_op("shardwright::attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return attention_backward(grad, q, k, v, out, lse, is_causal, scale)


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    batch, heads, length, _ = q.shape
    out = q.new_empty(batch, length, heads, v.shape[3]).transpose(1, 2)
    return out, q.new_empty(batch, heads, length, dtype=lse_dtype(q))


@_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(empty_heads_inside(t) for t in (q, k, v))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, ctx.is_causal, ctx.scale = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, out, lse)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    grads = torch.ops.shardwright.attention_backward(
        grad, *ctx.saved_tensors, ctx.is_causal, ctx.scale
    )
    return (*grads, None, None)


_attention.register_autograd(_differentiate, setup_context=_save)
