"""`shardwright::lstm` and its backward: one LSTM layer in one direction, by the fastest kernel of
each device.

The reserve is opaque: [T, B, 5H] for fake tensors; for real ones, whatever the kernel that ran
makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from planner.kernels.lstm_loop import Gradients, loop_backward, loop_forward

__all__ = ["lstm_backward", "lstm_forward"]

#: ATen's number for an LSTM, for oneDNN and cuDNN
#: (`torch.backends.cudnn.rnn.get_cudnn_mode`).
_LSTM_MODE = 2


def lstm_forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    group: dist.ProcessGroup | None = None,
    units: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y [T, B, H], hT, cT [B, H] and the reserve of one layer over x [T, B, I].

    With a group, the hidden units are split over it: weights are this rank's rows of each gate, h0,
    c0 and y its units; `units` has the number of units of each rank, if these differ.
    """
    if group is None and _has_onednn(x, b_ih):
        return _onednn_forward(x, h0, c0, w_ih, w_hh, b_ih, b_hh)
    if group is None and _has_cudnn(x):
        return _cudnn_forward(x, h0, c0, [w for w in (w_ih, w_hh, b_ih, b_hh) if w is not None])
    return loop_forward(x, h0, c0, w_ih, w_hh, b_ih, b_hh, group, units)


def lstm_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    y: Tensor,
    c_last: Tensor,
    reserve: Tensor,
    group: dist.ProcessGroup | None = None,
    units: Sequence[int] = (),
) -> Gradients:
    """The gradients of x, h0, c0, w_ih, w_hh and both biases; with a group, that of x is a partial
    sum over it."""
    if group is None and _has_onednn(x, b_ih):
        return _onednn_backward(
            grad_y, grad_h, grad_c, x, h0, c0, w_ih, w_hh, b_ih, b_hh, y, c_last, reserve
        )
    if group is None and _has_cudnn(x):
        weights = [w for w in (w_ih, w_hh, b_ih, b_hh) if w is not None]
        return _cudnn_backward(grad_y, grad_h, grad_c, x, h0, c0, weights, y, reserve)
    return loop_backward(grad_y, grad_h, grad_c, x, h0, c0, w_ih, w_hh, y, reserve, group, units)


def _has_onednn(x: Tensor, bias: Tensor | None) -> bool:
    fits = x.device.type == "cpu" and x.dtype == torch.float32 and bias is not None
    return fits and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def _has_cudnn(x: Tensor) -> bool:
    return x.is_cuda and x.dtype != torch.float64 and torch.backends.cudnn.is_available()  # type: ignore[no-untyped-call]


def _onednn_forward(
    x: Tensor, h0: Tensor, c0: Tensor, *weights: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden = h0.shape[1]
    # The workspace for backward is only made if gradients are recorded.
    with torch.enable_grad():
        y, h, c, reserve = torch.ops.aten.mkldnn_rnn_layer(
            x.contiguous(),
            *weights,
            h0[None],
            c0[None],
            False,
            [],
            _LSTM_MODE,
            hidden,
            1,
            True,
            False,
            False,
            True,
        )
    return y, h[0], c[0], reserve


def _onednn_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    *saved: Any,
) -> Gradients:
    *weights, y, c_last, reserve = saved
    gx, gw_ih, gw_hh, gb, _, gh0, gc0 = torch.ops.aten.mkldnn_rnn_layer_backward(
        x.contiguous(),
        *weights,
        h0[None],
        c0[None],
        y,
        y[-1:],
        c_last[None],
        _dense(grad_y),
        _layer(grad_h),
        _layer(grad_c),
        False,
        _LSTM_MODE,
        h0.shape[1],
        1,
        True,
        True,
        False,
        [],
        False,
        reserve,
    )
    return gx, gh0[0], gc0[0], gw_ih, gw_hh, gb


def _cudnn_forward(
    x: Tensor, h0: Tensor, c0: Tensor, weights: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    flat, views = _cudnn_weights(x, weights)
    y, h, c, reserve, _ = torch.ops.aten._cudnn_rnn(
        x,
        views,
        len(views),
        flat,
        *_states(h0, c0),
        _LSTM_MODE,
        h0.shape[1],
        0,
        1,
        False,
        0.0,
        True,
        False,
        [],
        None,
    )
    return y, h[0], c[0], reserve


def _states(h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor]:
    """The states as contiguous [1, B, H]: cuDNN refuses any other layout."""
    return h0[None].contiguous(), c0[None].contiguous()


def _cudnn_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    y: Tensor,
    reserve: Tensor,
) -> Gradients:
    flat, views = _cudnn_weights(x, weights)
    gx, gh0, gc0, grads = torch.ops.aten._cudnn_rnn_backward(
        x,
        views,
        len(views),
        flat,
        *_states(h0, c0),
        y,
        _dense(grad_y),
        _layer(grad_h),
        _layer(grad_c),
        _LSTM_MODE,
        h0.shape[1],
        0,
        1,
        False,
        0.0,
        True,
        False,
        [],
        None,
        reserve,
        [True, True, True, True],
    )
    gb = grads[2] if len(grads) > 2 else x.new_zeros(4 * h0.shape[1])
    return gx, gh0[0], gc0[0], grads[0], grads[1], gb


def _cudnn_weights(x: Tensor, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """cuDNN's one buffer with a copy of the weights, and views of it; the weights given stay where
    they are."""
    views = [weight.detach() for weight in weights]
    hidden = views[1].shape[1]
    flat = torch.ops.aten._cudnn_rnn_flatten_weight(
        views, len(views), x.shape[2], _LSTM_MODE, hidden, 0, 1, False, False
    )
    return flat, views


def _layer(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad[None].contiguous()


def _dense(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.contiguous()  # both libraries read the bare pointer


@torch.library.custom_op("shardwright::lstm", mutates_args=())
def _lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, h, c, reserve = lstm_forward(x, h0, c0, w_ih, w_hh, b_ih, b_hh)
    return y, h.clone(), c.clone(), reserve


@torch.library.custom_op("shardwright::lstm_backward", mutates_args=())
def _lstm_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    y: Tensor,
    c_last: Tensor,
    reserve: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    # cuDNN's gradients share one buffer, which the results of a torch op must not.
    grads = lstm_backward(
        grad_y, grad_h, grad_c, x, h0, c0, w_ih, w_hh, b_ih, b_hh, y, c_last, reserve
    )
    return tuple(g.clone() for g in grads) if x.is_cuda else grads  # type: ignore[return-value]


@_lstm.register_fake
def _(
    x: Tensor, h0: Tensor, c0: Tensor, *weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    steps, batch, _ = x.shape
    hidden = h0.shape[1]
    y, reserve = x.new_empty(steps, batch, hidden), x.new_empty(steps, batch, 5 * hidden)
    return y, torch.empty_like(h0), torch.empty_like(c0), reserve


@_lstm_backward.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    x, h0, c0, w_ih, w_hh = args[3:8]
    return (*(torch.empty_like(t) for t in (x, h0, c0, w_ih, w_hh)), w_ih.new_empty(w_ih.shape[0]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, _, c_last, reserve = output
    ctx.save_for_backward(*inputs, y, c_last, reserve)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, grad_y: Tensor | None, grad_h: Tensor | None, grad_c: Tensor | None, _: Any
) -> tuple[Any, ...]:
    *grads, gb = torch.ops.shardwright.lstm_backward(grad_y, grad_h, grad_c, *ctx.saved_tensors)
    return (*grads, gb, gb) if ctx.saved_tensors[5] is not None else (*grads, None, None)


_lstm.register_autograd(_differentiate, setup_context=_save)
