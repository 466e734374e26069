"""`shardwright::attention` and its backward: softmax(scale q k^T) v, by the device's flash kernel
if it has one.

q [B, H, T, D], k and v [B, K, S, D], where K divides H (grouped queries: H/K heads of q read one
of k); lse [B, H, T] is the log of the softmax's denominator. Causal means key <= query, both
counted from 0. Results are laid out in memory as [B, T, H, D]: joining the heads copies nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "attention", "attention_backward", "cpu_backward", "empty_heads_inside", "grouped",
    "has_cpu_kernel", "heads_inside", "lse_dtype", "rows_together", "scores_of", "sum_groups",
]  # fmt: skip


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
    if kernel == "cpu" and _better_wide(
        q
    ):  # here, so that shared key heads are cast and summed once
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
        grads = _flash_backward(grad, q, k, v, out, lse, is_causal, scale)
    elif kernel == "efficient":
        grads = _efficient_backward(grad, q, k, v, out, lse, is_causal, scale)
    else:
        grads = _math_backward(grad, q, k, v, out, lse, is_causal, scale)
    gk, gv = sum_groups(grads[1], num_kv_heads), sum_groups(grads[2], num_kv_heads)
    return heads_inside(grads[0]), heads_inside(gk), heads_inside(gv)


def rows_together(t: Tensor) -> Tensor:
    """`t` with its last dim contiguous. Flash kernels take that for granted of a gradient, and do
    not check."""
    return t if t.stride(-1) == 1 else t.contiguous()


def grouped(k: Tensor, q: Tensor) -> Tensor:
    """Keys or values with each head repeated for every query head that reads it."""
    groups = q.shape[1] // k.shape[1]
    return k if groups == 1 else k.repeat_interleave(groups, 1)


def sum_groups(grad: Tensor, num_kv_heads: int) -> Tensor:
    """The gradient of k or v from that of its repeated heads."""
    return (
        grad
        if grad.shape[1] == num_kv_heads
        else grad.reshape(grad.shape[0], num_kv_heads, -1, *grad.shape[2:]).sum(2)
    )


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
    if _better_wide(q):
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


def _better_wide(q: Tensor) -> bool:
    return q.dtype == torch.bfloat16 and q.shape[2] < _MANY_QUERIES


def _flash_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    unused = (
        q.new_empty(2, dtype=torch.uint64),
        q.new_empty((), dtype=torch.uint64),
    )  # the dropout's random state
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


def _efficient_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    unused = q.new_zeros((), dtype=torch.int64)  # the dropout's seed and offset
    padded = torch.nn.functional.pad(
        lse, (0, -lse.shape[-1] % 32), value=float("inf")
    )  # the kernel wants rows by 32
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


def _math_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
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


def scores_of(q: Tensor, k: Tensor, is_causal: bool, scale: float) -> Tensor:
    """scale q k^T, with -inf where a causal mask hides the key."""
    dtype = lse_dtype(q)
    scores = torch.matmul(q.to(dtype), k.to(dtype).mT) * scale
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(1)
        scores.masked_fill_(hidden, float("-inf"))
    return scores


def lse_dtype(q: Tensor) -> torch.dtype:
    """The dtype in which scores are summed."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def empty_heads_inside(t: Tensor) -> Tensor:
    """An empty tensor of the shape of `t`, laid out as `heads_inside` does."""
    return t.new_empty(t.shape[0], t.shape[2], t.shape[1], t.shape[3]).transpose(1, 2)


def heads_inside(t: Tensor) -> Tensor:
    """`t` [B, H, T, D] laid out in memory as [B, T, H, D]."""
    return t.transpose(1, 2).contiguous().transpose(1, 2)


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
