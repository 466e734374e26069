"""While `Canonical` is active, torch's recurrent layers, cross-entropy and attention become ours:
tracing shows one node of each.

What they have and ours do not (class weights, label smoothing) is left to torch, or refused where
that would give another graph on another platform.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cost_models.errors import NotTraceable
from planner.kernels.calls import (
    SDPA,
    attention_call,
    batch_norm_call,
    cross_entropy_call,
    one_hot_call,
    rms_norm_call,
)
from planner.kernels.masked_write import WRITES, written
from planner.kernels.random import Random
from planner.kernels.recurrent_calls import lstm_layers, recurrent_layers
from planner.kernels.unchecked import UNCHECKED
from planner.kernels.windows import windows_of
from planner.state.known import is_known

__all__ = ["Canonical"]


class Canonical(Random):
    """Redirects LSTM, cross-entropy, attention, batch and RMS norm to `shardwright::` ops, and
    dropout as `Random` does."""

    in_place = (
        False  # a graph has no in-place ops; if the operand is read again, verifying a run shows it
    )

    def __init__(self, key: Tensor | None = None, module: nn.Module | None = None) -> None:
        super().__init__(key)
        self.module = module
        self.sparse: list[
            Tensor
        ] = []  # tables of embeddings that ask for sparse gradients, which are planned as dense

    def __enter__(self) -> Canonical:
        super().__enter__()
        return self

    @contextmanager
    def checkpointed(self) -> Iterator[None]:
        """Refuses a block that changes buffers: torch would run it again in backward and change
        them twice, but a plan runs it once."""
        before = _states(self.module)
        yield
        after = _states(self.module)
        changed = [name for name, state in after.items() if before.get(name) != state]
        if changed:
            raise NotTraceable(
                "a block under torch.utils.checkpoint changes buffers "
                f"({', '.join(changed[:3])}): torch runs the block twice and changes them twice, "
                "but a plan changes them once: call the block without checkpoint"
            )

    def other(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if func in _EMBEDDINGS:
            return self._embedding(func, *args, **kwargs)
        if (
            func is torch.where
            and args
            and isinstance(args[0], Tensor)
            and args[0].dtype == torch.uint8
        ):
            # Eager mode accepts bytes as a mask, fake tensors do not.
            return func(args[0] != 0, *args[1:], **kwargs)
        if func in (F.ctc_loss, torch.ctc_loss):
            raise NotTraceable(_CTC)
        if func is torch.lstm:
            return lstm_layers(*args, **kwargs)
        if func in _RECURRENT:
            return recurrent_layers(_RECURRENT[func], *args, **kwargs)
        if func is F.cross_entropy:
            return cross_entropy_call(*args, **kwargs)
        if func is F.one_hot:
            return one_hot_call(*args, **kwargs)
        if func is SDPA:
            return attention_call(*args, **kwargs)
        if func in (F.batch_norm, torch.batch_norm):
            return batch_norm_call(func, *args, **kwargs)
        if func in (F.rms_norm, torch.rms_norm):
            return rms_norm_call(*args, **kwargs)
        if func in (torch.as_strided, Tensor.as_strided):
            found = windows_of(*args, **kwargs)
            return func(*args, **kwargs) if found is None else found
        if func == _SET_DATA:
            return _set_data(*args)
        if func in UNCHECKED:
            return UNCHECKED[func](*args, **kwargs)
        if func in _COUNTS and not is_known(args[0] if args else kwargs["input"]):
            raise NotTraceable(_COUNT)
        if func in WRITES:
            return written(func, *args, **kwargs, known=is_known)
        if func in _BY_FORMAT:
            return func(
                *map(_contiguous, args),
                **{key: _contiguous(value) for key, value in kwargs.items()},
            )
        return func(*args, **kwargs)

    def _embedding(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = _EMBEDDINGS[func].bind(*args, **kwargs)
        if call.arguments.get("sparse"):
            call.arguments["sparse"] = False
            self.sparse.append(call.arguments["weight"])
        return func(*call.args, **call.kwargs)


def _states(module: nn.Module | None) -> dict[str, tuple[int, int]]:
    """The identity and version of each buffer, by name: they change if it is replaced or
    written."""
    return (
        {} if module is None else {name: (id(b), b._version) for name, b in module.named_buffers()}
    )


_EMBEDDINGS = {func: inspect.signature(func) for func in (F.embedding, F.embedding_bag)}

_CTC = (
    "F.ctc_loss (nn.CTCLoss) is not supported: torch's kernel reads the lengths on the host and "
    "cannot be split over any dim; use a loss made of tensor ops"
)

_COUNTS = (torch.bincount, Tensor.bincount)

_COUNT = (
    "the length of the result of torch.bincount depends on the values, even with minlength: use "
    "F.one_hot(x, n).sum(0), where n is the "
    "number of classes"
)

#: Functions whose derivative has another formula if the matrix is contiguous (its factors are then
#: those of the transpose). Which of the two is recorded must not depend on the matrix's strides.
_BY_FORMAT = {
    torch.det,
    torch.linalg.det,
    Tensor.det,
    torch.logdet,
    Tensor.logdet,
    torch.slogdet,
    torch.linalg.slogdet,
    Tensor.slogdet,
    torch.linalg.solve,
    torch.linalg.solve_ex,
    torch.linalg.tensorsolve,
}

_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


def _set_data(tensor: Tensor, value: Tensor) -> None:
    """`tensor.data = value` as a write, because no mode that records calls sees a tensor take
    another's memory. As with the assignment, autograd does not notice, and what it saved of the
    tensor reads the new numbers."""
    if (tensor.shape, tensor.dtype) != (value.shape, value.dtype):
        raise NotTraceable(
            f".data of a tensor of shape {tuple(tensor.shape)} in {tensor.dtype} is set to one "
            f"of shape {tuple(value.shape)} in {value.dtype}: keep shape and dtype"
        )
    tensor.data.copy_(value)


def _contiguous(argument: Any) -> Any:
    return argument.contiguous() if isinstance(argument, Tensor) else argument


_RECURRENT = {torch.gru: "gru", torch.rnn_tanh: "tanh", torch.rnn_relu: "relu"}
