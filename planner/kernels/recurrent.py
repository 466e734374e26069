"""`shardwright::recurrent` and its backward: one GRU or plain recurrent layer in one direction, as
a loop over time.

`mode` is `gru`, `keras-gru`, `tanh` or `relu`. A GRU's gates are in PyTorch's order r, z, n, or in
Keras's z, r, n: n = tanh(x_n + r h_n), h = (1 - z) n + z h_before. (`reset-gru`, whose reset gate
comes before the product, is in `reset_gru`.) If split over a group of k ranks, a rank holds H/k
hidden units of each gate; the whole h is gathered at every step and, in backward, its partial
gradient is reduce-scattered. `reserve` is n, r, z and h_n of a GRU [T, B, 4H], or the result of a
plain layer [T, B, H].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from planner.kernels.groups import gathered
from planner.kernels.gru_loop import gru_backward, gru_forward
from planner.kernels.lstm_loop import grad_hidden, grad_w_hh, hidden_blocks, padded
from planner.kernels.reset_gru import reset_gru_backward, reset_gru_forward

__all__ = ["recurrent_backward", "recurrent_forward", "saved_parts"]


def saved_parts(mode: str) -> int:
    """The reserve's size per step and sample, in units of H."""
    return 4 if mode.endswith("gru") else 1


def recurrent_forward(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    mode: str,
    group: dist.ProcessGroup | None = None,
    units: Sequence[int] = (),
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [T, B, H], hT [B, H] and the reserve. x [T, B, I] is whole, all else is of this rank's
    hidden units; `units` has the number of units of each rank, if these differ. Where `mask`
    [T, B] is False, h stays as it is."""
    if mode == "reset-gru":
        return reset_gru_forward(x, h0, w_ih, w_hh, b_ih, b_hh, group, units, mask)
    if group is None and mask is None and mode.endswith("gru"):
        biases = [None if bias is None else _torch_order(bias, mode) for bias in (b_ih, b_hh)]
        return gru_forward(x, h0, _torch_order(w_ih, mode), _torch_order(w_hh, mode), *biases)
    hidden = h0.shape[1]
    inputs = torch.nn.functional.linear(x.reshape(-1, x.shape[2]), w_ih, b_ih).view(
        *x.shape[:2], -1
    )
    blocks = hidden_blocks(w_hh, hidden, units).transpose(1, 2).contiguous()
    h, ys, saved = h0, [], []
    for t in range(x.shape[0]):
        whole = h.unsqueeze(0) if group is None else gathered(padded(h, blocks.shape[1]), group)
        recurrent = torch.bmm(whole, blocks).sum(0)
        new, kept = _cell(inputs[t], recurrent if b_hh is None else recurrent + b_hh, h, mode)
        h = new if mask is None else torch.where(mask[t, :, None], new, h)
        ys.append(h)
        saved.append(kept)
    return torch.stack(ys), h.clone(), torch.stack(saved)


def recurrent_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    y: Tensor,
    reserve: Tensor,
    mode: str,
    group: dist.ProcessGroup | None = None,
    units: Sequence[int] = (),
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x (a partial sum over a group), h0, w_ih, w_hh and of either bias."""
    if mode == "reset-gru":
        return reset_gru_backward(grad_y, grad_h, x, h0, w_ih, w_hh, y, reserve, group, units, mask)
    if group is None and mask is None and mode.endswith("gru"):
        weights = _torch_order(w_ih, mode), _torch_order(w_hh, mode)
        gx, gh0, gw_ih, gw_hh, gb_ih, gb_hh = gru_backward(
            grad_y, grad_h, x, h0, *weights, y, reserve
        )
        first, second = _torch_order(gw_ih, mode), _torch_order(gw_hh, mode)
        return gx, gh0, first, second, _torch_order(gb_ih, mode), _torch_order(gb_hh, mode)
    blocks = hidden_blocks(w_hh, h0.shape[1], units).contiguous()
    dh = torch.zeros_like(h0) if grad_h is None else grad_h
    into, through = [], []  # gradients of the part that comes from x, and of that from h
    for t in reversed(range(x.shape[0])):
        dh = dh if grad_y is None else dh + grad_y[t]
        on = None if mask is None else mask[t, :, None].to(dh.dtype)
        given = dh if on is None else dh * on
        from_x, from_h, rest = _cell_backward(given, reserve[t], y[t - 1] if t else h0, mode)
        kept = None if on is None else dh * (1 - on)
        dh = grad_hidden(from_h, blocks, group)[:, : h0.shape[1]]
        dh = dh if rest is None else dh + rest
        dh = dh if kept is None else dh + kept
        into.append(from_x)
        through.append(from_h)
    gi, gh = torch.stack(into[::-1]), torch.stack(through[::-1])
    flat = gi.view(-1, gi.shape[2])
    gx, gw_ih = torch.mm(flat, w_ih).view(x.shape), torch.mm(flat.t(), x.reshape(-1, x.shape[2]))
    return gx, dh, gw_ih, grad_w_hh(gh, h0, y, group, units), flat.sum(0), gh.sum((0, 1))


def _cell(from_x: Tensor, from_h: Tensor, h: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """The next h, and this step's part of the reserve."""
    if not mode.endswith("gru"):
        out = torch.tanh(from_x + from_h) if mode == "tanh" else torch.relu(from_x + from_h)
        return out, out
    (xr, xz, xn), (hr, hz, hn) = (
        _ordered(from_x.chunk(3, 1), mode),
        _ordered(from_h.chunk(3, 1), mode),
    )
    r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
    n = torch.tanh(xn + r * hn)
    return n + z * (h - n), torch.cat([n, r, z, hn], 1)


def _cell_backward(
    dh: Tensor, saved: Tensor, before: Tensor, mode: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of the parts that came from x and from h, and of h by the path that bypasses
    the product (None if there is none)."""
    if not mode.endswith("gru"):
        slope = 1 - saved * saved if mode == "tanh" else (saved > 0).to(dh.dtype)
        return dh * slope, dh * slope, None
    n, r, z, hn = saved.chunk(4, 1)
    dn = dh * (1 - z) * (1 - n * n)
    dz = dh * (before - n) * z * (1 - z)
    dr = dn * hn * r * (1 - r)
    return (
        torch.cat(_ordered((dr, dz, dn), mode), 1),
        torch.cat(_ordered((dr, dz, dn * r), mode), 1),
        dh * z,
    )


def _ordered(gates: Sequence[Tensor], mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """r, z, n from gates in the mode's order. Its own inverse."""
    first, second, third = gates
    return (second, first, third) if mode == "keras-gru" else (first, second, third)


def _torch_order(weight: Tensor, mode: str) -> Tensor:
    """A weight's rows, reordered from the mode's order of gates to PyTorch's. Its own inverse."""
    return weight if mode == "gru" else torch.cat(_ordered(weight.chunk(3), mode))


@torch.library.custom_op("shardwright::recurrent", mutates_args=())
def _recurrent(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return recurrent_forward(x, h0, w_ih, w_hh, b_ih, b_hh, mode)


@torch.library.custom_op("shardwright::recurrent_backward", mutates_args=())
def _recurrent_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    y: Tensor,
    reserve: Tensor,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return recurrent_backward(grad_y, grad_h, x, h0, w_ih, w_hh, y, reserve, mode)


@_recurrent.register_fake
def _(x: Tensor, h0: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, hidden = x.shape[0], x.shape[1], h0.shape[1]
    reserve = x.new_empty(steps, batch, saved_parts(rest[-1]) * hidden)
    return x.new_empty(steps, batch, hidden), torch.empty_like(h0), reserve


@_recurrent_backward.register_fake
def _(
    grad_y: Any, grad_h: Any, x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    bias = w_ih.new_empty(w_ih.shape[0])
    return (*(torch.empty_like(t) for t in (x, h0, w_ih, w_hh)), bias, torch.empty_like(bias))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, h0, w_ih, w_hh, b_ih, _, ctx.mode = inputs
    ctx.has_bias = b_ih is not None
    ctx.save_for_backward(x, h0, w_ih, w_hh, output[0], output[2])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, grad_y: Tensor | None, grad_h: Tensor | None, _: Any
) -> tuple[Any, ...]:
    grads = torch.ops.shardwright.recurrent_backward(grad_y, grad_h, *ctx.saved_tensors, ctx.mode)
    return (*grads, None) if ctx.has_bias else (*grads[:4], None, None, None)


_recurrent.register_autograd(_differentiate, setup_context=_save)
