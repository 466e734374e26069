"""`shardwright::uniform`: random numbers that do not depend on how a tensor is split; and all other
random ops made of them.

While `Noise` is active, ops that would draw from a device's generator (`torch.rand`, `randn_like`,
`bernoulli`, `exponential_`, `multinomial`, ...) are computed from uniform numbers. Like dropout's
masks, each is a function of the step's key, the op's number in the step and the element's place in
the whole tensor. The draws differ from torch's but have the same distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from planner.kernels.dropout import Places, Samples, draws
from planner.kernels.functional import rewritten, twin_of
from planner.torch_private.modes import TorchDispatchMode

__all__ = ["Noise", "uniform"]

#: Draws are cut to this many bits: with half a step added, they are exact in float32, above 0 and
#: below 1.
_BITS = 23


def uniform(
    key: Tensor,
    shape: Sequence[int],
    number: int,
    dtype: torch.dtype,
    places: Places | None = None,
    device: torch.device | None = None,
    samples: Samples | None = None,
) -> Tensor:
    """Numbers above 0 and below 1 on `device`; `places` says which part of the whole tensor they
    are (None: all of it), `samples` which part of the whole batch's that tensor is, if it is one
    microbatch's."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bits = (
        draws(tuple(shape), device or torch.get_default_device(), key, number, places, samples)
        .bitwise_right_shift_(32 - _BITS)
        .bitwise_and_((1 << _BITS) - 1)
    )
    found = bits.to(wide).add_(0.5).mul_(2.0**-_BITS)
    return found.to(dtype).clamp_(max=1 - torch.finfo(dtype).eps / 2)


@torch.library.custom_op("shardwright::uniform", mutates_args=())
def _uniform(
    key: Tensor,
    shape: Sequence[int],
    number: int,
    dtype: torch.dtype,
    samples: Sequence[int] | None = None,
) -> Tensor:
    return uniform(key, shape, number, dtype, samples=samples)


@_uniform.register_fake
def _(
    key: Tensor,
    shape: Sequence[int],
    number: int,
    dtype: torch.dtype,
    samples: Sequence[int] | None = None,
) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype)


#: The shape and dtype of what is drawn -> uniform numbers.
Draw = Callable[[Sequence[int], torch.dtype | None], Tensor]


class Noise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes random ops from `shardwright::uniform` under `key`; `number` tells the ops of a
    step apart."""

    def __init__(self, key: Tensor, number: Callable[[], int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.key, self.number = key, number

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        drawn = _RANDOM.get(str(func))
        if drawn is None and _writes_draws(func):
            with self:
                return rewritten(func, *args, **(kwargs or {}))
        if drawn is None:
            return func(*args, **(kwargs or {}))
        return drawn(self._draw, *args, **(kwargs or {}))

    def _draw(self, shape: Sequence[int], dtype: torch.dtype | None) -> Tensor:
        dtype = dtype or torch.get_default_dtype()
        found: Tensor = torch.ops.shardwright.uniform(self.key, list(shape), self.number(), dtype)
        return found


# ----------------------------------------------------------------------------------------- op by op


def _normal(u: Tensor) -> Tensor:
    return torch.erfinv(u * 2 - 1) * math.sqrt(2)


def _floating(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype.is_floating_point else torch.get_default_dtype()


def _rand(draw: Draw, size: Sequence[int], *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return draw(size, dtype)


def _randn(
    draw: Draw, size: Sequence[int], *, dtype: torch.dtype | None = None, **_: Any
) -> Tensor:
    return _normal(draw(size, dtype))


def _rand_like(draw: Draw, x: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return draw(x.shape, dtype or x.dtype)


def _randn_like(draw: Draw, x: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return _normal(draw(x.shape, dtype or x.dtype))


def _between(
    draw: Draw, low: int, high: int, size: Sequence[int], dtype: torch.dtype | None
) -> Tensor:
    """Integers from `low` to `high` - 1; a range wider than one draw's bits takes two draws."""
    u = draw(size, torch.float64)
    if high - low > 1 << _BITS:
        u = (u * 2.0**_BITS).floor() * 2.0**-_BITS + draw(size, torch.float64) * 2.0**-_BITS
    return (u * (high - low)).floor().to(dtype or torch.int64) + low


def _randint(
    draw: Draw, high: int, size: Sequence[int], *, dtype: torch.dtype | None = None, **_: Any
) -> Tensor:
    return _between(draw, 0, high, size, dtype)


def _randint_low(
    draw: Draw,
    low: int,
    high: int,
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    **_: Any,
) -> Tensor:
    return _between(draw, low, high, size, dtype)


def _randint_like(
    draw: Draw, x: Tensor, high: int, *, dtype: torch.dtype | None = None, **_: Any
) -> Tensor:
    return _between(draw, 0, high, x.shape, dtype or x.dtype)


def _randint_like_low(
    draw: Draw, x: Tensor, low: int, high: int, *, dtype: torch.dtype | None = None, **_: Any
) -> Tensor:
    return _between(draw, low, high, x.shape, dtype or x.dtype)


def _randperm(draw: Draw, n: int, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return torch.argsort(draw([n], torch.float64)).to(dtype or torch.int64)


def _bernoulli(draw: Draw, p: Tensor, **_: Any) -> Tensor:
    return (draw(p.shape, p.dtype) < p).to(p.dtype)


def _bernoulli_p(draw: Draw, x: Tensor, p: float, **_: Any) -> Tensor:
    return (draw(x.shape, _floating(x)) < p).to(x.dtype)


def _bernoulli_tensor(draw: Draw, x: Tensor, p: Tensor, **_: Any) -> Tensor:
    return (draw(x.shape, _floating(p)) < p).to(x.dtype)


def _uniform_numbers(
    draw: Draw, x: Tensor, low: float = 0.0, high: float = 1.0, **_: Any
) -> Tensor:
    return draw(x.shape, x.dtype) * (high - low) + low


def _exponential(draw: Draw, x: Tensor, rate: float = 1.0, **_: Any) -> Tensor:
    return -torch.log(draw(x.shape, x.dtype)) / rate


def _normal_numbers(draw: Draw, x: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:
    return _normal(draw(x.shape, x.dtype)) * std + mean


def _normal_around(draw: Draw, mean: Tensor, std: float = 1.0, **_: Any) -> Tensor:
    return _normal(draw(mean.shape, mean.dtype)) * std + mean


def _normal_both(draw: Draw, mean: Tensor, std: Tensor, **_: Any) -> Tensor:
    return _normal(draw((mean + std).shape, mean.dtype)) * std + mean


def _multinomial(draw: Draw, p: Tensor, count: int, replacement: bool = False, **_: Any) -> Tensor:
    """The indices of the largest sums of log p and Gumbel noise (Kool, van Hoof and Welling, ICML
    2019)."""

    def noisy(weights: Tensor) -> Tensor:
        return torch.log(weights) - torch.log(-torch.log(draw(weights.shape, p.dtype)))

    if replacement:
        return noisy(p.unsqueeze(-2).expand(*p.shape[:-1], count, p.shape[-1])).argmax(-1)
    return noisy(p).topk(count, -1).indices


@cache
def _writes_draws(op: Any) -> bool:
    """Whether the op writes a random op's result to a tensor: `x.uniform_()`,
    `torch.rand(3, out=x)`."""
    twin = twin_of(op)
    return twin is not None and str(twin.op) in _RANDOM


_RANDOM: dict[str, Callable[..., Tensor]] = {
    "aten.rand.default": _rand,
    "aten.randn.default": _randn,
    "aten.rand_like.default": _rand_like,
    "aten.randn_like.default": _randn_like,
    "aten.randint.default": _randint,
    "aten.randint.low": _randint_low,
    "aten.randint_like.default": _randint_like,
    "aten.randint_like.low_dtype": _randint_like_low,
    "aten.randperm.default": _randperm,
    "aten.bernoulli.default": _bernoulli,
    "aten.bernoulli.p": _bernoulli_p,
    "aten.bernoulli.Tensor": _bernoulli_tensor,
    "aten.uniform.default": _uniform_numbers,
    "aten.exponential.default": _exponential,
    "aten.normal_functional.default": _normal_numbers,
    "aten.normal.Tensor_float": _normal_around,
    "aten.normal.Tensor_Tensor": _normal_both,
    "aten.multinomial.default": _multinomial,
}
