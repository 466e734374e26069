"""A GRU layer in one direction as a loop over time that writes in place: hidden units not split, no
mask.

The recurrent product is written into the reserve, [T, B, 4H] = n, r, z, h_n. The gradients before
the gates have the same layout: columns n, r, z are those of the part from x, and r, z, h_n those of
the part from h, so each is one matrix without a copy. The weights' gates are r, z, n.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gru_backward", "gru_forward"]


def gru_forward(
    x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """y [T, B, H], hT [B, H] and the reserve, over x [T, B, I]."""
    (steps, batch, _), hidden = x.shape, h0.shape[1]
    # one product, whatever the strides of x: torch's linear of a transposed x is one per step
    inputs = torch.nn.functional.linear(x.reshape(steps * batch, -1), w_ih, b_ih).view(
        steps, batch, -1
    )
    turned = w_hh.t()
    y, reserve = x.new_empty(steps, batch, hidden), x.new_empty(steps, batch, 4 * hidden)
    n, r, z, hn = _by_step(reserve)
    from_h, gates = reserve[..., hidden:].unbind(0), reserve[..., hidden : 3 * hidden].unbind(0)
    x_gates, x_n, ys = (
        inputs[..., : 2 * hidden].unbind(0),
        inputs[..., 2 * hidden :].unbind(0),
        y.unbind(0),
    )
    h = h0
    for t in range(steps):
        if b_hh is None:
            torch.mm(h, turned, out=from_h[t])
        else:
            torch.addmm(b_hh, h, turned, out=from_h[t])
        gates[t].add_(x_gates[t]).sigmoid_()
        torch.addcmul(x_n[t], r[t], hn[t], out=n[t]).tanh_()
        h = torch.lerp(n[t], h, z[t], out=ys[t])
    return y, h.clone(), reserve


def gru_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    y: Tensor,
    reserve: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, h0, w_ih, w_hh and both biases."""
    (steps, batch, hidden), rows = y.shape, x.shape[0] * x.shape[1]
    grads = torch.empty_like(reserve)
    parts, of_h, ys = (
        (*_by_step(reserve), *_by_step(grads)),
        grads[..., hidden:].unbind(0),
        y.unbind(0),
    )
    dh = torch.zeros_like(h0) if grad_h is None else grad_h.clone()
    through, rest, some = (torch.empty_like(dh) for _ in range(3))
    for t in reversed(range(steps)):
        n, r, z, hn, dn, dr, dz, dhn = (part[t] for part in parts)
        if grad_y is not None:
            dh.add_(grad_y[t])
        torch.mul(dh, z, out=through)
        torch.sub(dh, through, out=rest)
        torch.mul(rest, n, out=some)
        torch.addcmul(rest, some, n, value=-1, out=dn)
        torch.sub(ys[t - 1] if t else h0, n, out=some)
        torch.addcmul(through, through, z, value=-1, out=rest)
        torch.mul(some, rest, out=dz)
        torch.mul(dn, r, out=dhn)
        torch.mul(dhn, hn, out=some)
        torch.addcmul(some, some, r, value=-1, out=dr)
        torch.addmm(through, of_h[t], w_hh, out=dh)
    flat, flat_x = grads.view(rows, 4 * hidden), x.reshape(rows, -1)
    gx = torch.mm(flat[:, : 3 * hidden], w_ih.roll(hidden, 0)).view(x.shape)
    gw_ih = torch.mm(flat[:, : 3 * hidden].t(), flat_x).roll(-hidden, 0)
    gw_hh = torch.mm(flat[:batch, hidden:].t(), h0)
    gw_hh.addmm_(flat[batch:, hidden:].t(), y[:-1].reshape(rows - batch, hidden))
    bias = flat.sum(0)
    return gx, dh, gw_ih, gw_hh, bias[: 3 * hidden].roll(-hidden, 0), bias[hidden:].clone()


def _by_step(reserve: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    """The four parts of the reserve, each as a tuple by step."""
    return tuple(part.unbind(0) for part in reserve.chunk(4, -1))
