"""While `Canonical` is active, torch's recurrent layers, cross-entropy and attention become our
fused ops: the trace has one node for each.

Calls that ours do not cover (class weights, label smoothing) are left to torch, or refused if
torch would give another graph on another platform.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cost_models.errors import NotTraceable
from planner.kernels.masked_write import WRITES, written
from planner.kernels.random import Random
from planner.kernels.unchecked import UNCHECKED
from planner.state.known import is_known

__all__ = ["Canonical"]

_SDPA = F.scaled_dot_product_attention


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
                f"a block under torch.utils.checkpoint changes buffers ({', '.join(changed[:3])}), and torch changes them twice, as it "
                "runs the block twice, where a plan, which keeps activations, runs it once: call the block without checkpoint"
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
            return func(
                args[0] != 0, *args[1:], **kwargs
            )  # eager accepts bytes as a mask, fake tensors do not
        if func in (F.ctc_loss, torch.ctc_loss):
            raise NotTraceable(_CTC)
        if func is torch.lstm:
            return _lstm(*args, **kwargs)
        if func in _RECURRENT:
            return _recurrent(_RECURRENT[func], *args, **kwargs)
        if func is F.cross_entropy:
            return _cross_entropy(*args, **kwargs)
        if func is F.one_hot:
            return _one_hot(*args, **kwargs)
        if func is _SDPA:
            return _attention(*args, **kwargs)
        if func in (F.batch_norm, torch.batch_norm):
            return _batch_norm(func, *args, **kwargs)
        if func in (F.rms_norm, torch.rms_norm):
            return _rms_norm(*args, **kwargs)
        if func in (torch.as_strided, Tensor.as_strided):
            found = _windows(*args, **kwargs)
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
    "F.ctc_loss (nn.CTCLoss) is not planned: torch's kernel reads the lengths on the host and splits over no dim; "
    "use a loss that is made of tensor ops"
)

_COUNTS = (torch.bincount, Tensor.bincount)
_COUNT = (
    "torch.bincount gives as many numbers as its largest value says, whatever minlength is: use F.one_hot(x, n).sum(0), where n is the "
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
            f".data of a tensor of shape {tuple(tensor.shape)} in {tensor.dtype} is set to one of shape {tuple(value.shape)} in "
            f"{value.dtype}: set it to one like it"
        )
    tensor.data.copy_(value)


def _contiguous(argument: Any) -> Any:
    return argument.contiguous() if isinstance(argument, Tensor) else argument


_RECURRENT = {torch.gru: "gru", torch.rnn_tanh: "tanh", torch.rnn_relu: "relu"}

#: (x [T, B, I], the states [B, H], the weights and biases) -> y and the states after the last step.
_Cell = Callable[[Tensor, tuple[Tensor, ...], Sequence[Tensor]], tuple[Tensor, tuple[Tensor, ...]]]


def _lstm(x: Tensor, second: Any, *rest: Any) -> tuple[Tensor, ...]:
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


def _recurrent(mode: str, x: Tensor, second: Any, *rest: Any) -> tuple[Tensor, ...]:
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


def _one_hot(input: Tensor, num_classes: int = -1) -> Tensor:
    """`F.one_hot` without torch's look at the values of real tensors, which fake ones lack."""
    if num_classes < 1 or input.dtype != torch.int64:
        return F.one_hot(input, num_classes)
    return F.one_hot(torch.ops.shardwright.checked_ids(input, num_classes, False), num_classes)


_CROSS_ENTROPY = inspect.signature(F.cross_entropy)


def _cross_entropy(*args: Any, **kwargs: Any) -> Tensor:
    call = _CROSS_ENTROPY.bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    logits, target, reduction = given["input"], given["target"], given["reduction"]
    extras = (
        any(given[name] is not None for name in ("weight", "size_average", "reduce"))
        or given["label_smoothing"]
    )
    if extras or reduction == "none" or target.dtype != torch.int64 or logits.dim() < 2:
        return F.cross_entropy(*args, **kwargs)
    if logits.dim() > 2:
        logits = logits.movedim(1, -1).reshape(-1, logits.shape[1])
        target = target.reshape(-1)
    loss, _ = torch.ops.shardwright.cross_entropy(logits, target, given["ignore_index"])
    out: Tensor = loss
    if reduction == "mean":
        out = loss / torch.ops.shardwright.count_targets(target, given["ignore_index"])
    return out.to(logits.dtype)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if dropout_p or query.dim() not in (3, 4) or not _fit(query, key, value, enable_gqa):
        return _SDPA(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    q, k, v = (t if t.dim() == 4 else t.unsqueeze(-3) for t in (query, key, value))
    if attn_mask is None:
        out, _ = torch.ops.shardwright.attention(q, k, v, is_causal, scale)
    else:
        bias = attn_mask if query.dim() == 4 or attn_mask.dim() < 3 else attn_mask.unsqueeze(-3)
        out, _ = torch.ops.shardwright.masked_attention(
            q, k, v, bias[(None,) * (4 - bias.dim())], is_causal, scale
        )
    return out if query.dim() == 4 else out.squeeze(-3)  # type: ignore[no-any-return]


def _fit(query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> bool:
    """Whether at most key heads have to be broadcast."""
    if (
        not query.dim() == key.dim() == value.dim()
        or query.shape[0] != key.shape[0]
        or key.shape[:-1] != value.shape[:-1]
    ):
        return False
    heads, kv_heads = query.shape[-3], key.shape[-3]
    return heads == kv_heads or (grouped and query.dim() == 4 and heads % kv_heads == 0)


_BATCH_NORM = inspect.signature(F.batch_norm)


def _batch_norm(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    """`F.batch_norm`. In training, the statistics are those of the whole batch, over all its
    shards; the running ones are written by `copy_`, which the trace reads as their new value."""
    if func is torch.batch_norm:
        x, weight, bias, mean, var, training, momentum, eps, _ = args
    else:
        call = _BATCH_NORM.bind(*args, **kwargs)
        call.apply_defaults()
        x, mean, var, weight, bias, training, momentum, eps = call.arguments.values()
    if not training:
        return func(*args, **kwargs)  # type: ignore[no-any-return]
    out, _, _, new_mean, new_var = torch.ops.shardwright.batch_norm(
        x, weight, bias, mean, var, momentum, eps
    )
    if mean is not None and var is not None:
        mean.copy_(new_mean)
        var.copy_(new_var)
    return out  # type: ignore[no-any-return]


def _rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """`F.rms_norm`. torch has a kernel for operands of one dtype; it decomposes the norm itself if
    they differ."""
    dims, count = len(normalized_shape), math.prod(normalized_shape)
    same = weight is None or weight.dtype == input.dtype
    if (
        not same
        or not dims
        or tuple(normalized_shape) != tuple(input.shape[-dims:])
        or not input.is_floating_point()
    ):
        return F.rms_norm(input, list(normalized_shape), weight, eps)
    wide = (
        torch.float64 if input.dtype == torch.float64 else torch.float32
    )  # torch's default: that of the dtype it sums in
    eps = torch.finfo(wide).eps if eps is None else eps
    out: Tensor = torch.ops.shardwright.rms_norm(input, weight, dims, count, eps)[0]
    return out


def _windows(
    x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor | None:
    """A strided view of x as overlapping windows of one dim, [..., windows, window, ...], made of
    slices instead, which can be split in the other dims; None if the view is not of that kind. The
    dim may come as (windows side by side, window)."""
    if storage_offset not in (None, x.storage_offset()) or len(size) not in (x.dim(), x.dim() + 1):
        return None
    for c in range(len(size) - 1):
        count, width, step = size[c], size[c + 1], stride[c] // max(stride[c + 1], 1)
        if not step or stride[c] % stride[c + 1] or width % step:
            continue
        long = x
        if len(size) == x.dim():
            if x.stride(c) != x.stride(c + 1) * x.shape[c + 1]:
                continue
            long = x.flatten(c, c + 1)
        others = [*range(c), *range(c + 1, long.dim())]
        same = all(
            (long.shape[d], long.stride(d)) == (size[d + (d > c)], stride[d + (d > c)])
            for d in others
        )
        if same and long.stride(c) == stride[c + 1] and (count - 1) * step + width <= long.shape[c]:
            apart = (*long.shape[:c], count, step, *long.shape[c + 1 :])
            pieces = [
                long.narrow(c, at, count * step).reshape(apart) for at in range(0, width, step)
            ]
            return torch.cat(pieces, c + 1)
    return None
