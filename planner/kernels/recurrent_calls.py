"""`torch.lstm`, `torch.gru` and `torch.rnn_*` as layers of our ops, direction by direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cost_models.errors import NotTraceable

__all__ = ["lstm_layers", "recurrent_layers"]


#: (x [T, B, I], the states [B, H], the weights and biases) -> y and the states after the last step.
_Cell = Callable[[Tensor, tuple[Tensor, ...], Sequence[Tensor]], tuple[Tensor, tuple[Tensor, ...]]]


def lstm_layers(x: Tensor, second: Any, *rest: Any) -> tuple[Tensor, ...]:
    """`torch.lstm` as nn.LSTM calls it."""
    if isinstance(second, Tensor):
        raise NotTraceable(
            "nn.LSTM on a packed sequence is not supported: pad the batch to one length and pass the tensor"
        )
    weights = rest[0]
    if weights[1].shape[1] * 4 != weights[1].shape[0]:
        raise NotTraceable("nn.LSTM with proj_size is not supported: set proj_size=0")

    def cell(
        x: Tensor, states: tuple[Tensor, ...], mine: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, h, c, _ = torch.ops.shardwright.lstm(x, *states, *mine[:2], *(mine[2:] or (None, None)))
        return y, (h, c)

    return _layers("nn.LSTM", cell, x, tuple(second), *rest)


def recurrent_layers(mode: str, x: Tensor, second: Any, *rest: Any) -> tuple[Tensor, ...]:
    """`torch.gru`, `torch.rnn_tanh` and `torch.rnn_relu` as nn.GRU and nn.RNN call them."""
    name = "nn.GRU" if mode == "gru" else "nn.RNN"
    if not isinstance(rest[0], list | tuple):
        raise NotTraceable(
            f"{name} on a packed sequence is not supported: pad the batch to one length and pass the tensor"
        )

    def cell(
        x: Tensor, states: tuple[Tensor, ...], mine: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, h, _ = torch.ops.shardwright.recurrent(
            x, *states, *mine[:2], *(mine[2:] or (None, None)), mode
        )
        return y, (h,)

    return _layers(name, cell, x, (second,), *rest)


def _layers(
    name: str, cell: _Cell, x: Tensor, first: tuple[Tensor, ...], *rest: Any
) -> tuple[Tensor, ...]:
    """Layer by layer, direction by direction: the outputs, then the last states of all."""
    weights, has_biases, num_layers, dropout, training, bidirectional, batch_first = rest
    assert not (dropout and training and num_layers > 1), f"`Random` takes dropout out of {name}"
    num_directions, per = 1 + bidirectional, 2 + 2 * has_biases
    y, last = x.transpose(0, 1) if batch_first else x, []
    for layer in range(num_layers):
        outs = []
        for direction in range(num_directions):
            at = layer * num_directions + direction
            mine = weights[at * per : (at + 1) * per]
            out, states = cell(
                y.flip(0) if direction else y, tuple(state[at] for state in first), mine
            )
            outs.append(out.flip(0) if direction else out)
            last.append(states)
        y = torch.cat(outs, -1) if bidirectional else outs[0]
    ends = [torch.stack([states[i] for states in last]) for i in range(len(first))]
    return y.transpose(0, 1) if batch_first else y, *ends
