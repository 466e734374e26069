"""While `Random` is active, dropout draws its masks from a key: the same in one process, in every
replica and in every shard.

The trace runs under it, and so does the run in one process that a plan is verified against: masks
are numbered in the same order. Other random ops are computed from the same key (`noise`). Dropout
inside attention and between the layers of a recurrent network is taken out of the fused op, which
would draw its own masks.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from planner.kernels.noise import Noise
from planner.torch_private.checkpoints import without_recompute

__all__ = ["Random"]

_DROPOUT = inspect.signature(F.dropout)
_ATTENTION = inspect.signature(
    lambda query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False: (
        None
    )
)
_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)

#: torch's own functions that `F.multi_head_attention_forward` calls.
_INSIDE = {name: getattr(F, name) for name in ("dropout", "scaled_dot_product_attention")}


class Random(TorchFunctionMode):
    """Redirects dropout to `shardwright::dropout` under a key, which is read for every mask, and
    other random ops to `Noise`; all are numbered from 0. Blocks under `torch.utils.checkpoint`
    run once: a mask drawn again would have another number."""

    in_place = True  # dropout in place writes to its operand

    def __init__(self, key: Tensor | None = None) -> None:
        super().__init__()
        self.key, self.number, self.noise = key, 0, ExitStack()

    def __enter__(self) -> Random:
        self.noise.enter_context(without_recompute(self.checkpointed))
        if self.key is not None:
            self.noise.enter_context(Noise(self.key, self._next))
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.noise.close()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (_INSIDE["dropout"], torch.dropout, torch.dropout_):
            return self._dropout(func, *args, **kwargs)
        if func in (F.dropout1d, F.dropout2d, F.dropout3d, torch.feature_dropout):
            return self._dropout(func, *args, **kwargs, of_channels=True)
        if func is _INSIDE["scaled_dot_product_attention"]:
            return self._attention(*args, **kwargs)
        # Only the call for a packed sequence has a tensor in this place.
        if func in _RECURRENT and not isinstance(args[1 if func is torch.lstm else 2], Tensor):
            return self._recurrent(func, *args)
        if func is F.multi_head_attention_forward:
            with self._inside():
                return func(*args, **kwargs)
        return self.other(func, *args, **kwargs)

    def checkpointed(self) -> AbstractContextManager[None]:
        """The context in which a block under `torch.utils.checkpoint` runs."""
        return nullcontext()

    def other(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a function that is not one of the redirected random ones."""
        return func(*args, **kwargs)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Redirects the calls inside `F.multi_head_attention_forward` to this mode, which torch
        does not ask about calls made by a function that it was asked about."""

        def led(func: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **kwargs: self.__torch_function__(func, (), args, kwargs)

        with ExitStack() as stack:
            for name, func in _INSIDE.items():
                stack.enter_context(patch.object(F, name, led(func)))
            yield

    def _next(self) -> int:
        self.number += 1
        return self.number - 1

    def drop(self, x: Tensor, p: float) -> Tensor:
        """x with the next mask applied."""
        assert self.key is not None, "a mode without a key is for what is not random"
        out, _ = torch.ops.shardwright.dropout(x, self.key, p, self._next())
        return out  # type: ignore[no-any-return]

    def _dropout(self, func: Any, *args: Any, of_channels: bool = False, **kwargs: Any) -> Tensor:
        names = {"train": "training"}
        given = _DROPOUT.bind(*args, **{names.get(k, k): v for k, v in kwargs.items()})
        given.apply_defaults()
        x, p, training, inplace = (
            given.arguments[name] for name in ("input", "p", "training", "inplace")
        )
        if not training or p == 0:
            return x  # type: ignore[no-any-return]
        ones = (*x.shape[:2], *(1 for _ in x.shape[2:]))
        out = x * self.drop(x.new_ones(ones), p) if of_channels else self.drop(x, p)
        return x.copy_(out) if (inplace or func is torch.dropout_) and self.in_place else out

    def _attention(self, *args: Any, **kwargs: Any) -> Tensor:
        given = _ATTENTION.bind(*args, **kwargs)
        given.apply_defaults()
        call = given.arguments
        if not call["dropout_p"]:
            return self.other(_INSIDE["scaled_dot_product_attention"], *args, **kwargs)  # type: ignore[no-any-return]
        query, key, value, mask = (call[name] for name in ("query", "key", "value", "attn_mask"))
        if call["enable_gqa"]:
            key, value = (
                t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value)
            )
        scale = 1 / math.sqrt(query.shape[-1]) if call["scale"] is None else call["scale"]
        scores = query @ key.transpose(-2, -1) * scale
        if call["is_causal"]:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(hidden, float("-inf"))
        elif mask is not None:
            scores = (
                scores.masked_fill(~mask, float("-inf"))
                if mask.dtype == torch.bool
                else scores + mask
            )
        return self.drop(torch.softmax(scores, -1), call["dropout_p"]) @ value  # type: ignore[no-any-return]

    def _recurrent(self, func: Any, *args: Any) -> Any:
        """A recurrent network layer by layer, with a mask between each layer and the next."""
        x, states, weights, has_biases, num_layers, p, training, bidirectional, batch_first = args
        if not (p and training and num_layers > 1):
            return self.other(func, *args)
        is_lstm, directions = func is torch.lstm, 1 + bidirectional
        per = len(weights) // num_layers
        last: list[Any] = []
        for layer in range(num_layers):
            at = slice(layer * directions, (layer + 1) * directions)
            state = [s[at] for s in states] if is_lstm else states[at]
            mine = weights[layer * per : (layer + 1) * per]
            x, *end = self.other(
                func, x, state, mine, has_biases, 1, 0.0, training, bidirectional, batch_first
            )
            last.append(end)
            x = self.drop(x, p) if layer < num_layers - 1 else x
        return (x, *(torch.cat(parts) for parts in zip(*last, strict=True)))
