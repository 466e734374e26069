"""Mixed precision as in `torch.autocast`: parameters in float32, products in a shorter format,
norms and losses in float32.

torch's lists of ops differ between CPU and CUDA, and a plan must not depend on where it was traced.
So the products are those of the CPU's list, and `_Listed` keeps in float32 what CUDA's list keeps
there. Both hold for the trace and for the run that a plan is verified against.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["precision"]

#: Losses. In parameters of a short format with a master copy, they too are computed in float32, as
#: training code for such parameters does: Megatron-LM (`vocab_parallel_cross_entropy` of
#: `logits.float()`), torchtitan (`cross_entropy_loss` of `pred.float()`), Hugging Face
#: (`ForCausalLMLoss`).
_LOSSES = {
    F.log_softmax,
    torch.log_softmax,
    Tensor.log_softmax,
    F.cross_entropy,
    F.nll_loss,
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.kl_div,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
}

#: In float32, from CUDA's list. Source: torch.amp, "CUDA Ops that can autocast to float32".
_WIDE = {
    *_LOSSES,
    F.layer_norm,
    F.group_norm,
    F.rms_norm,
    torch.rms_norm,
    F.softmax,
    torch.softmax,
    Tensor.softmax,
    F.softplus,
    F.cosine_similarity,
    torch.exp,
    Tensor.exp,
    torch.log,
    Tensor.log,
    torch.pow,
    Tensor.pow,
    torch.rsqrt,
    Tensor.rsqrt,
    torch.sum,
    Tensor.sum,
    torch.prod,
    Tensor.prod,
    torch.cumsum,
    Tensor.cumsum,
    torch.norm,
    Tensor.norm,
}

#: Functions of torch's that become fused ops of ours, which autocast does not know: they run in
#: the shorter format.
_SHORT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu, F.scaled_dot_product_attention}


class _Listed(TorchFunctionMode):
    """Casts the floating operands of the functions in `wide` to float32, and of those in `short` to
    `dtype`."""

    def __init__(
        self, wide: Collection[Any], short: Collection[Any] = (), dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.wide, self.short, self.dtype = wide, short, dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        dtype = torch.float32 if func in self.wide else self.dtype if func in self.short else None
        if dtype is not None:
            args, kwargs = _cast(args, dtype), _cast(kwargs, dtype)
        return func(*args, **kwargs)


@contextmanager
def precision(compute: str, *, wide_losses: bool = False) -> Iterator[None]:
    """While active, products are computed in dtype `compute`, and ops that need it in float32. If
    `compute` is empty, only losses are computed in float32, if `wide_losses`, else nothing
    changes."""
    if not compute:
        with _Listed(_LOSSES) if wide_losses else nullcontext():
            yield
        return
    dtype = getattr(torch, compute)
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    with ExitStack() as stack:
        for device in devices:
            stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=False))
        stack.enter_context(_Listed(_WIDE, _SHORT, dtype))
        yield


def _cast(argument: Any, dtype: torch.dtype) -> Any:
    if isinstance(argument, Tensor):
        return (
            argument.to(dtype)
            if argument.is_floating_point() and argument.dtype != torch.float64
            else argument
        )
    if isinstance(argument, dict):
        return {key: _cast(value, dtype) for key, value in argument.items()}
    if isinstance(argument, tuple | list):
        return type(argument)(_cast(value, dtype) for value in argument)
    return argument
