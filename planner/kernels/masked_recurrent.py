"""`shardwright::masked_lstm` and `masked_recurrent`: recurrent layers that skip masked steps, as
Keras's do.

Where the mask [T, B] is False, the states stay as they were, and y repeats them. The loops are
those of `lstm_loop` and `recurrent`; no library's kernel takes a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from planner.kernels.lstm_loop import Gradients, loop_backward, loop_forward
from planner.kernels.recurrent import recurrent_backward, recurrent_forward, saved_parts

__all__ = ["masked_lstm", "masked_lstm_backward", "masked_recurrent", "masked_recurrent_backward"]


def masked_lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    mask: Tensor,
    group: dist.ProcessGroup | None = None,
    units: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, hT, cT and the reserve, as `lstm_forward`."""
    return loop_forward(x, h0, c0, w_ih, w_hh, b_ih, b_hh, group, units, mask)


def masked_lstm_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    y: Tensor,
    reserve: Tensor,
    mask: Tensor,
    group: dist.ProcessGroup | None = None,
    units: Sequence[int] = (),
) -> Gradients:
    """The gradients of x, h0, c0, w_ih, w_hh and of either bias."""
    return loop_backward(
        grad_y, grad_h, grad_c, x, h0, c0, w_ih, w_hh, y, reserve, group, units, mask
    )


def masked_recurrent(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    mask: Tensor,
    mode: str,
    group: dist.ProcessGroup | None = None,
    units: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """y, hT and the reserve, as `recurrent_forward`."""
    return recurrent_forward(x, h0, w_ih, w_hh, b_ih, b_hh, mode, group, units, mask)


def masked_recurrent_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    y: Tensor,
    reserve: Tensor,
    mask: Tensor,
    mode: str,
    group: dist.ProcessGroup | None = None,
    units: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, h0, w_ih, w_hh and of either bias."""
    return recurrent_backward(
        grad_y, grad_h, x, h0, w_ih, w_hh, y, reserve, mode, group, units, mask
    )


@torch.library.custom_op("shardwright::masked_lstm", mutates_args=())
def _lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    mask: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return masked_lstm(x, h0, c0, w_ih, w_hh, b_ih, b_hh, mask)


@torch.library.custom_op("shardwright::masked_lstm_backward", mutates_args=())
def _lstm_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    y: Tensor,
    reserve: Tensor,
    mask: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return masked_lstm_backward(grad_y, grad_h, grad_c, x, h0, c0, w_ih, w_hh, y, reserve, mask)


@torch.library.custom_op("shardwright::masked_recurrent", mutates_args=())
def _recurrent(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    mask: Tensor,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return masked_recurrent(x, h0, w_ih, w_hh, b_ih, b_hh, mask, mode)


@torch.library.custom_op("shardwright::masked_recurrent_backward", mutates_args=())
def _recurrent_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    y: Tensor,
    reserve: Tensor,
    mask: Tensor,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return masked_recurrent_backward(grad_y, grad_h, x, h0, w_ih, w_hh, y, reserve, mask, mode)


@_lstm.register_fake
def _(x: Tensor, h0: Tensor, c0: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    steps, batch, hidden = x.shape[0], x.shape[1], h0.shape[1]
    y, reserve = x.new_empty(steps, batch, hidden), x.new_empty(steps, batch, 5 * hidden)
    return y, torch.empty_like(h0), torch.empty_like(c0), reserve


@_lstm_backward.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    return (*(torch.empty_like(t) for t in args[3:8]), args[6].new_empty(args[6].shape[0]))


@_recurrent.register_fake
def _(x: Tensor, h0: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, hidden = x.shape[0], x.shape[1], h0.shape[1]
    reserve = x.new_empty(steps, batch, saved_parts(rest[-1]) * hidden)
    return x.new_empty(steps, batch, hidden), torch.empty_like(h0), reserve


@_recurrent_backward.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    bias = args[4].new_empty(args[4].shape[0])
    return (*(torch.empty_like(t) for t in args[2:6]), bias, torch.empty_like(bias))


def _save_lstm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, h0, c0, w_ih, w_hh, b_ih, _, mask = inputs
    ctx.has_bias = b_ih is not None
    ctx.save_for_backward(x, h0, c0, w_ih, w_hh, output[0], output[3], mask)
    ctx.set_materialize_grads(False)


def _differentiate_lstm(
    ctx: Any, grad_y: Tensor | None, grad_h: Tensor | None, grad_c: Tensor | None, _: Any
) -> tuple[Any, ...]:
    *grads, gb = torch.ops.shardwright.masked_lstm_backward(
        grad_y, grad_h, grad_c, *ctx.saved_tensors
    )
    return (*grads, *((gb, gb) if ctx.has_bias else (None, None)), None)


def _save_recurrent(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, h0, w_ih, w_hh, b_ih, _, mask, ctx.mode = inputs
    ctx.has_bias = b_ih is not None
    ctx.save_for_backward(x, h0, w_ih, w_hh, output[0], output[2], mask)
    ctx.set_materialize_grads(False)


def _differentiate_recurrent(
    ctx: Any, grad_y: Tensor | None, grad_h: Tensor | None, _: Any
) -> tuple[Any, ...]:
    grads = torch.ops.shardwright.masked_recurrent_backward(
        grad_y, grad_h, *ctx.saved_tensors, ctx.mode
    )
    return (*grads[:4], *(grads[4:] if ctx.has_bias else (None, None)), None, None)


_lstm.register_autograd(_differentiate_lstm, setup_context=_save_lstm)
_recurrent.register_autograd(_differentiate_recurrent, setup_context=_save_recurrent)
