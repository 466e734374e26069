"""Masked recurrent layers and Keras's GRUs against autograd through a loop over time, written
plainly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import planner.kernels  # noqa: F401  # registers the ops

T, B, WIDTH, H = 5, 3, 2, 4


def cell(
    mode: str, x: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]
) -> tuple[Tensor, ...]:
    """The states after one step."""
    w_ih, w_hh, b_ih, b_hh = weights
    h = states[0]
    if mode == "lstm":
        i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
        c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if mode in ("tanh", "relu"):
        return (getattr(torch, mode)(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh),)
    xz, xr, xn = (x @ w_ih.T + b_ih).chunk(3, 1)
    wz, wr, wn = w_hh.chunk(3, 0)
    bz, br, bn = b_hh.chunk(3, 0)
    z, r = (xz + h @ wz.T + bz).sigmoid(), (xr + h @ wr.T + br).sigmoid()
    n = (xn + r * (h @ wn.T + bn) if mode == "keras-gru" else xn + bn + (r * h) @ wn.T).tanh()
    return (z * h + (1 - z) * n,)


def loop(
    mode: str, x: Tensor, states: tuple[Tensor, ...], weights: list[Tensor], mask: Tensor | None
) -> Tensor:
    ys = []
    for t in range(x.shape[0]):
        new = cell(mode, x[t], states, weights)
        if mask is not None:
            new = tuple(
                torch.where(mask[t, :, None], a, b) for a, b in zip(new, states, strict=True)
            )
        states = new
        ys.append(states[0])
    return torch.stack(ys)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", ["lstm", "tanh", "relu", "keras-gru", "reset-gru"])
def test_values_and_gradients_are_those_of_the_loop(mode: str, masked: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = {"lstm": 4, "tanh": 1, "relu": 1}.get(mode, 3) * H

    def real(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, states = real(T, B, WIDTH), tuple(real(B, H) for _ in range(2 if mode == "lstm" else 1))
    weights = [real(rows, WIDTH), real(rows, H), real(rows), real(rows)]
    mask = torch.rand(T, B, generator=generator) > 0.4 if masked else None
    held = [x, *states, *weights]
    wanted = loop(mode, x, states, weights, mask)
    weight = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad((wanted * weight).sum(), held)
    name = ("masked_" if masked else "") + ("lstm" if mode == "lstm" else "recurrent")
    more = (() if mask is None else (mask,)) + (() if mode == "lstm" else (mode,))
    y = getattr(torch.ops.shardwright, name)(x, *states, *weights, *more)[0]
    torch.testing.assert_close(y, wanted)
    for found, right in zip(torch.autograd.grad((y * weight).sum(), held), expected, strict=True):
        torch.testing.assert_close(found, right)
