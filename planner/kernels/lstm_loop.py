"""One LSTM layer in one direction as a loop over time: any dtype, any device, optionally with its
hidden units split.

If split over a group of k ranks, a rank holds H/k hidden units of each gate: w_ih [4H/k, I], w_hh
[4H/k, H], y [T, B, H/k]. If k does not divide H, `units` has the ranks' numbers of units, and each
message is padded to the largest. The whole h is all-gathered at every step; in backward, the
partial gradient of the whole h is reduce-scattered at every step. Gates are in PyTorch's order
i, f, g, o. `reserve` [T, B, 5H] holds the activated gates and, last, c.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from planner.kernels.groups import gathered, scattered

__all__ = [
    "Gradients",
    "grad_hidden",
    "grad_w_hh",
    "hidden_blocks",
    "loop_backward",
    "loop_forward",
    "padded",
]

#: Gradients of x, h0, c0, w_ih, w_hh and both biases.
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def loop_forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    group: dist.ProcessGroup | None = None,
    units: Sequence[int] = (),
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, hT, cT and the reserve. x [T, B, I] is whole, all else is of this rank's hidden units.
    Where `mask` [T, B] is False, h and c stay as they are."""
    num_steps, batch, _ = x.shape
    hidden = h0.shape[1]
    y = x.new_empty(num_steps, batch, hidden)
    reserve = x.new_empty(num_steps, batch, 5 * hidden)
    _input_gates(x, w_ih, b_ih, b_hh, out=reserve.view(-1, 5 * hidden)[:, : 4 * hidden])
    blocks = hidden_blocks(w_hh, hidden, units).transpose(1, 2).contiguous()
    h, c = h0, c0
    for t in range(num_steps):
        gates = reserve[t, :, : 4 * hidden]
        _add_hidden(gates, h, blocks, group)
        c_next = reserve[t, :, 4 * hidden :]
        _cell(gates, c, c_next, y[t])
        if mask is not None:
            c_next.copy_(torch.where(mask[t, :, None], c_next, c))
            y[t].copy_(torch.where(mask[t, :, None], y[t], h))
        h, c = y[t], c_next
    return y, h.clone(), c.clone(), reserve


def loop_backward(
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
    group: dist.ProcessGroup | None = None,
    units: Sequence[int] = (),
    mask: Tensor | None = None,
) -> Gradients:
    """The gradients. With a group, that of x is a partial sum over the ranks, and the others are
    this rank's. A masked step passes the gradient of its states on to the step before it."""
    num_steps, batch, hidden = y.shape
    blocks = hidden_blocks(w_hh, hidden, units).contiguous()
    grad_gates = y.new_empty(num_steps, batch, 4 * hidden)
    dh = torch.zeros_like(h0) if grad_h is None else grad_h
    dc = torch.zeros_like(c0) if grad_c is None else grad_c
    for t in reversed(range(num_steps)):
        if grad_y is not None:
            dh = dh + grad_y[t]
        c_before = reserve[t - 1, :, 4 * hidden :] if t else c0
        if mask is None:
            dc = _cell_backward(dh, dc, reserve[t], c_before, grad_gates[t])
            dh = grad_hidden(grad_gates[t], blocks, group)[:, :hidden]
        else:
            on = mask[t, :, None].to(dh.dtype)
            dc = _cell_backward(dh * on, dc * on, reserve[t], c_before, grad_gates[t]) + dc * (
                1 - on
            )
            dh = grad_hidden(grad_gates[t], blocks, group)[:, :hidden] + dh * (1 - on)
    flat = grad_gates.view(-1, 4 * hidden)
    gx = torch.mm(flat, w_ih).view_as(x)
    gw_ih = torch.mm(flat.t(), x.reshape(-1, x.shape[2]))
    return gx, dh, dc, gw_ih, grad_w_hh(grad_gates, h0, y, group, units), flat.sum(0)


def _input_gates(
    x: Tensor, w_ih: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, out: Tensor
) -> None:
    flat = x.reshape(-1, x.shape[2])
    if b_ih is None or b_hh is None:
        torch.mm(flat, w_ih.t(), out=out)
    else:
        torch.addmm(b_ih + b_hh, flat, w_ih.t(), out=out)


def hidden_blocks(w_hh: Tensor, hidden: int, units: Sequence[int] = ()) -> Tensor:
    """w_hh [4h, k*h] as [k, 4h, h]: one block for the hidden units of each rank, in the order in
    which a gather stacks them; padded with zeros if the ranks' `units` differ."""
    if not units:
        return w_hh.view(w_hh.shape[0], -1, hidden).transpose(0, 1)
    return torch.stack([padded(block, max(units)) for block in torch.split(w_hh, list(units), 1)])


def padded(x: Tensor, size: int) -> Tensor:
    """x with its last dim padded to `size` with zeros."""
    return x if x.shape[-1] == size else F.pad(x, (0, size - x.shape[-1]))


def _add_hidden(gates: Tensor, h: Tensor, blocks: Tensor, group: dist.ProcessGroup | None) -> None:
    """gates += h_full @ w_hh^T."""
    if group is None:
        gates.addmm_(h, blocks[0])
        return
    gates.addbmm_(gathered(padded(h, blocks.shape[1]), group), blocks)


def grad_hidden(grad_gates: Tensor, blocks: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The gradient of this rank's h, summed over the ranks; padded to the widest rank's h."""
    if group is None:
        return torch.mm(grad_gates, blocks[0])
    return scattered(torch.matmul(grad_gates, blocks), group)


def grad_w_hh(
    grad_gates: Tensor,
    h0: Tensor,
    y: Tensor,
    group: dist.ProcessGroup | None,
    units: Sequence[int] = (),
) -> Tensor:
    """The sum over time of grad_gates^T @ h_before; the whole of y is gathered once."""
    before = torch.cat([h0.unsqueeze(0), y[:-1]])
    if group is not None and units:
        stacked = gathered(padded(before, max(units)), group)
        before = torch.cat(
            [part[..., :size] for part, size in zip(stacked, units, strict=True)], -1
        )
    elif group is not None:
        stacked = gathered(before, group)
        before = stacked.permute(1, 2, 0, 3).reshape(*before.shape[:2], -1)
    return torch.mm(grad_gates.view(-1, grad_gates.shape[2]).t(), before.view(-1, before.shape[2]))


def _cell(gates: Tensor, c: Tensor, c_next: Tensor, h_next: Tensor) -> None:
    """Activates `gates` in place and writes c_next = f c + i g and h_next = o tanh(c_next)."""
    hidden = c.shape[1]
    gates[:, : 2 * hidden].sigmoid_()
    i, f, g, o = torch.split(gates, hidden, dim=1)
    g.tanh_()
    o.sigmoid_()
    torch.mul(f, c, out=c_next)
    c_next.addcmul_(i, g)
    torch.tanh(c_next, out=h_next)
    h_next.mul_(o)


def _cell_backward(
    dh: Tensor, dc: Tensor, reserve: Tensor, c_before: Tensor, out: Tensor
) -> Tensor:
    """Writes the gradient of the gates before activation to `out`; returns the gradient of
    c_before."""
    hidden = dh.shape[1]
    i, f, g, o, c = torch.split(reserve, hidden, dim=1)
    di, df, dg, do = torch.split(out, hidden, dim=1)
    tanh_c = torch.tanh(c)
    torch.mul(dh, tanh_c, out=do)
    dc = dc + torch.ops.aten.tanh_backward(dh * o, tanh_c)
    torch.mul(dc, g, out=di)
    torch.mul(dc, c_before, out=df)
    torch.mul(dc, i, out=dg)
    both = out[:, : 2 * hidden]
    torch.ops.aten.sigmoid_backward.grad_input(both, reserve[:, : 2 * hidden], grad_input=both)
    torch.ops.aten.tanh_backward.grad_input(dg, g, grad_input=dg)
    torch.ops.aten.sigmoid_backward.grad_input(do, o, grad_input=do)
    return dc.mul_(f)
