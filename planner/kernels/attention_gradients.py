"""The gradients of attention by the kernel that ran forward: the CPU's, CUDA's two or products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from planner.kernels.heads import scores_of

__all__ = ["better_wide", "cpu_backward", "efficient_backward", "flash_backward", "math_backward"]


#: torch's CPU kernel takes 32 queries at a time if there are fewer than this, else 64 or 256
#: (`FlashAttentionKernel.cpp`, 2.13).
_MANY_QUERIES = 192


def cpu_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
    added: Callable[[torch.dtype], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by the CPU's flash kernel; `added(dtype)` is the bias that was added to the
    scores.

    Products of 32 bfloat16 queries take longer than the same in float32, casts included: 7.8 ms
    against 4.7 ms for 4 x 8 heads of 128 x 64 on one core with AVX-512 (EPYC, torch 2.13)."""
    dtype = q.dtype
    if better_wide(q):
        grad, q, k, v, out = (t.float() for t in (grad, q, k, v, out))
    gq, gk, gv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad,
        q,
        k,
        v,
        out,
        lse,
        0.0,
        is_causal,
        attn_mask=None if added is None else added(q.dtype),
        scale=scale,
    )
    return gq.to(dtype), gk.to(dtype), gv.to(dtype)


def better_wide(q: Tensor) -> bool:
    """Whether the CPU takes fewer seconds in float32 than in the dtype of `q`."""
    return q.dtype == torch.bfloat16 and q.shape[2] < _MANY_QUERIES


def flash_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v by CUDA's flash kernel."""
    # The random state of the dropout.
    unused = (q.new_empty(2, dtype=torch.uint64), q.new_empty((), dtype=torch.uint64))
    result: tuple[Tensor, Tensor, Tensor] = (
        torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad,
            q,
            k,
            v,
            out,
            lse.contiguous(),
            None,
            None,
            q.shape[2],
            k.shape[2],
            0.0,
            is_causal,
            *unused,
            scale=scale,
        )
    )
    return result


def efficient_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v by CUDA's memory-efficient kernel."""
    unused = q.new_zeros((), dtype=torch.int64)  # the dropout's seed and offset
    # The kernel takes rows padded to a multiple of 32.
    padded = torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=float("inf"))
    grads = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
        grad,
        q,
        k,
        v,
        None,
        out,
        padded,
        unused,
        unused,
        0.0,
        [True, True, True, False],
        is_causal,
        scale=scale,
    )
    return grads[0], grads[1], grads[2]


def math_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v by products of the whole scores."""
    weights = torch.exp(scores_of(q, k, is_causal, scale) - lse[..., None])
    wide = grad.to(weights.dtype)
    delta = (wide * out).sum(-1, keepdim=True)
    grad_scores = weights * (torch.matmul(wide, v.to(wide.dtype).mT) - delta) * scale
    gq, gk = (
        torch.matmul(grad_scores, k.to(wide.dtype)),
        torch.matmul(grad_scores.mT, q.to(wide.dtype)),
    )
    gv = torch.matmul(weights.mT, wide)
    return gq.to(q.dtype), gk.to(k.dtype), gv.to(v.dtype)
