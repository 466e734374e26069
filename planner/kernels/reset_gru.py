"""A GRU whose reset gate comes before the product (Keras's `reset_after=False`), as a loop over
time.

n = tanh(x_n + W_n (r h) + b_n), h = z h + (1 - z) n; gates are in Keras's order z, r, n. Hidden
units may be split over a group: each step gathers h and then r h. `reserve` [T, B, 4H] holds z, r,
n and r h.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from planner.kernels.groups import gathered
from planner.kernels.lstm_loop import grad_hidden, grad_w_hh, hidden_blocks, padded

__all__ = ["reset_gru_backward", "reset_gru_forward"]


def reset_gru_forward(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    group: dist.ProcessGroup | None,
    units: Sequence[int],
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [T, B, H], hT [B, H] and the reserve; as `recurrent_forward`."""
    hidden = h0.shape[1]
    inputs = torch.nn.functional.linear(
        x, w_ih, b_ih if b_ih is None or b_hh is None else b_ih + b_hh
    )
    gates, last = (blocks.transpose(1, 2).contiguous() for blocks in _blocks(w_hh, hidden, units))
    h, ys, saved = h0, [], []
    for t in range(x.shape[0]):
        both = torch.sigmoid(
            inputs[t, :, : 2 * hidden] + torch.bmm(_whole(h, gates, group), gates).sum(0)
        )
        z, r = both.chunk(2, 1)
        reset = r * h
        n = torch.tanh(
            inputs[t, :, 2 * hidden :] + torch.bmm(_whole(reset, last, group), last).sum(0)
        )
        new = n + z * (h - n)
        h = new if mask is None else torch.where(mask[t, :, None], new, h)
        ys.append(h)
        saved.append(torch.cat([both, n, reset], 1))
    return torch.stack(ys), h.clone(), torch.stack(saved)


def reset_gru_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    y: Tensor,
    reserve: Tensor,
    group: dist.ProcessGroup | None,
    units: Sequence[int],
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x (a partial sum over a group), h0, w_ih, w_hh and of either bias."""
    hidden = h0.shape[1]
    gates, last = (blocks.contiguous() for blocks in _blocks(w_hh, hidden, units))
    dh = torch.zeros_like(h0) if grad_h is None else grad_h
    grads = y.new_empty(*y.shape[:2], 3 * hidden)
    for t in reversed(range(x.shape[0])):
        dh = dh if grad_y is None else dh + grad_y[t]
        z, r, n, _ = reserve[t].chunk(4, 1)
        before = y[t - 1] if t else h0
        given = dh if mask is None else dh * mask[t, :, None].to(dh.dtype)
        dn = given * (1 - z) * (1 - n * n)
        dreset = grad_hidden(dn, last, group)[:, :hidden]
        dz = given * (before - n) * z * (1 - z)
        dr = dreset * before * r * (1 - r)
        grads[t] = torch.cat([dz, dr, dn], 1)
        dh = (
            (dh - given)
            + given * z
            + dreset * r
            + grad_hidden(grads[t, :, : 2 * hidden], gates, group)[:, :hidden]
        )
    flat = grads.view(-1, 3 * hidden)
    gx, gw_ih = torch.mm(flat, w_ih).view(x.shape), torch.mm(flat.t(), x.reshape(-1, x.shape[2]))
    of_gates = grad_w_hh(grads[..., : 2 * hidden].contiguous(), h0, y, group, units)
    reset = reserve[..., 3 * hidden :]
    of_last = grad_w_hh(
        grads[..., 2 * hidden :].contiguous(),
        reset[0],
        torch.cat([reset[1:], reset[:1]]),
        group,
        units,
    )
    bias = flat.sum(0)
    return gx, dh, gw_ih, torch.cat([of_gates, of_last]), bias, bias.clone()


def _blocks(w_hh: Tensor, hidden: int, units: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The blocks (`hidden_blocks`) of the rows of z and r, and of n."""
    return hidden_blocks(w_hh[: 2 * hidden], hidden, units), hidden_blocks(
        w_hh[2 * hidden :], hidden, units
    )


def _whole(h: Tensor, blocks: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """h of all ranks, [k, B, h], as wide as the blocks [k, h, rows]."""
    return h.unsqueeze(0) if group is None else gathered(padded(h, blocks.shape[1]), group)
