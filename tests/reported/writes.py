"""Models that write to tensors: through `out=`, in place, to views, to several at once; and
buffers that take what others hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Made = tuple[nn.Module, tuple[Tensor, ...], object]


class Between(nn.Module):
    """Two linear layers with something done between them, and buffers of its own."""

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 5)
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.between(self.first(x)))
        return out

    def between(self, y: Tensor) -> Tensor:
        raise NotImplementedError


def made(module: nn.Module, batch: int) -> Made:
    return module, (torch.randn(batch, 6), torch.randint(0, 5, (batch,))), F.cross_entropy


class RunningNorm(Between):
    """Running statistics kept through `out=`, one of a function that gives two tensors."""

    mean: Tensor
    largest: Tensor
    place: Tensor

    def between(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            torch.lerp(self.mean, y.mean(0), 0.25, out=self.mean)
            torch.max(y, 0, out=(self.largest, self.place))
            torch.mul(self.largest, 0.5, out=self.largest)
        return (y - self.mean) / (1 + self.largest.abs()) + self.place


def running_norm(batch: int = 8) -> Made:
    return made(
        RunningNorm(
            mean=torch.zeros(8), largest=torch.ones(8), place=torch.zeros(8, dtype=torch.int64)
        ),
        batch,
    )


class Scratch(Between):
    """Results in tensors made for them, one of no size yet and one of a lesser dtype."""

    def between(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            grown, small = torch.empty(0, dtype=y.dtype), torch.empty(8, dtype=torch.float32)
            torch.matmul(y, y.t(), out=grown)
            torch.sum(grown, 0, out=small)
            grown.fill_diagonal_(0.25)
        return y * torch.tanh(grown + small)


def scratch(batch: int = 8) -> Made:
    return made(Scratch(), batch)


class Powers(Between):
    """Ops in place of which the form that gives a new tensor has another name, or another dtype."""

    def between(self, y: Tensor) -> Tensor:
        sign = y.detach().clone().ge_(0)
        y = y * 1.0
        y **= 3
        y = y.pow_(2).add(0.1)
        wide = (y.detach().abs() + 1).polygamma_(1)
        return y * sign / y.norm(p=3, dim=1, keepdim=True) + wide


def powers(batch: int = 8) -> Made:
    return made(Powers(), batch)


class Shadow(Between):
    """Weights that follow the trained ones by the list; a step behind, the last ones."""

    weight: Tensor
    bias: Tensor
    before: Tensor
    turned: Tensor

    def between(self, y: Tensor) -> Tensor:
        y = y + self.turned.sum(1) * self.before.sum(1) + self.bias
        with torch.no_grad():
            self.before.copy_(self.weight)
            pair = [self.weight, self.bias]
            torch._foreach_mul_(pair, 0.5)
            torch._foreach_add_(pair, [self.first.weight, self.first.bias], alpha=0.5)
            self.turned.t().copy_(self.first.weight[:, :2].t())
        return y + self.weight.sum(1) - self.before.sum(1)


def shadow(batch: int = 8) -> Made:
    tensors = {
        "weight": torch.rand(8, 6),
        "bias": torch.rand(8),
        "before": torch.zeros(8, 6),
        "turned": torch.zeros(8, 2),
    }
    return made(Shadow(**tensors), batch)


class Square(Between):
    """A square buffer written through its transpose, and a part of a buffer that is read after
    the whole has changed."""

    table: Tensor
    scale: Tensor

    def between(self, y: Tensor) -> Tensor:
        half = self.scale[:4]
        with torch.no_grad():
            self.table.t().copy_(y + self.table)
            self.scale.mul_(0.5).add_(y.mean(0))
        return y @ self.table * half.repeat(2)


def square(batch: int = 8) -> Made:
    return made(Square(table=torch.rand(8, 8), scale=torch.rand(8)), batch)


class Delayed(Between):
    """What was is kept before what is changes, by copying and by setting."""

    old: Tensor
    new: Tensor
    once: Tensor
    since: Tensor

    def between(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            self.old.copy_(self.new)
            self.new.copy_(y.mean(0))
        out = y * self.new - self.old + self.once * self.since
        self.once = self.since
        self.since = y.detach().amax(0)
        return out


def delayed(batch: int = 8) -> Made:
    return made(
        Delayed(old=torch.zeros(8), new=torch.ones(8), once=torch.rand(8), since=torch.rand(8)),
        batch,
    )


class Data(Between):
    """An average kept behind autograd's back."""

    average: Tensor
    count: Tensor

    def between(self, y: Tensor) -> Tensor:
        self.count.data += 1
        self.average.data = self.average.data * 0.75 + y.detach().mean(0) * 0.25
        return y - self.average / self.count


def data(batch: int = 8) -> Made:
    return made(Data(average=torch.rand(8), count=torch.zeros((), dtype=torch.int64)), batch)


class Codebook(Between):
    """Vector quantisation with a codebook of averages, as in VQ-VAE."""

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def between(self, y: Tensor) -> Tensor:
        near = torch.cdist(y, self.codes).argmin(1)
        chosen = F.one_hot(near, 4).to(y.dtype)
        coded = self.codes[near]
        self.counts.data.mul_(0.9).add_(chosen.sum(0), alpha=0.1)
        self.sums.data.mul_(0.9).add_(chosen.t() @ y.detach(), alpha=0.1)
        self.codes.data.copy_(self.sums / (self.counts + 1e-5).unsqueeze(1))
        return y + (coded - y).detach()


def codebook(batch: int = 8) -> Made:
    return made(
        Codebook(codes=torch.randn(4, 8), counts=torch.ones(4), sums=torch.randn(4, 8)), batch
    )


class Rolling(Between):
    """A queue written in slices, by an index that moves on."""

    queue: Tensor
    at: Tensor

    def between(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            self.queue[(self.at + torch.arange(8)) % 16] = y
            self.queue[1:3, 2:4] += 1
            self.queue[:, 0].zero_()
            self.at[0] = (self.at[0] + 8) % 16
        return y + self.queue.mean(0)


def rolling(batch: int = 8) -> Made:
    return made(Rolling(queue=torch.zeros(16, 8), at=torch.zeros(1, dtype=torch.int64)), batch)


# ------------------------------------------------------------------------------------------ refused


class Does(Between):
    def __init__(self, does: Callable[[Any, Tensor], Tensor], **buffers: Tensor) -> None:
        super().__init__(**buffers)
        self.does = does

    def between(self, y: Tensor) -> Tensor:
        return self.does(self, y)


def _clamped(module: Any, y: Tensor) -> Tensor:
    module.first.weight.data = module.first.weight.data.clamp(-0.1, 0.1)
    return y


def clamped(batch: int = 8) -> Made:
    return made(Does(_clamped), batch)


def _resized(module: Any, y: Tensor) -> Tensor:
    torch.sum(y.detach(), 0, out=module.total)
    return y


def resized(batch: int = 8) -> Made:
    return made(Does(_resized, total=torch.zeros(3)), batch)


def other_memory(batch: int = 8) -> Made:
    return made(
        Does(lambda module, y: y * torch.zeros(8, 8, dtype=y.dtype).set_(y.detach())), batch
    )


def _bound(module: Any, y: Tensor) -> Tensor:
    module.kept = module.first.weight.detach()
    return y


def bound(batch: int = 8) -> Made:
    return made(Does(_bound, kept=torch.zeros(8, 6)), batch)


def _twice(module: Any, y: Tensor) -> Tensor:
    module.kept = module.other = y.detach().mean(0)
    return y


def twice(batch: int = 8) -> Made:
    return made(Does(_twice, kept=torch.zeros(8), other=torch.zeros(8)), batch)


def _place_read(module: Any, y: Tensor) -> Tensor:
    values, place = torch.zeros(8, dtype=y.dtype), torch.zeros(8, dtype=torch.int64)
    torch.max(y.detach(), 0, out=(values, place))
    return y * 2 if place[0] > 0 else y


def place_read(batch: int = 8) -> Made:
    return made(Does(_place_read), batch)


RIGHT = {
    "running_norm": running_norm,
    "scratch": scratch,
    "powers": powers,
    "shadow": shadow,
    "square": square,
    "delayed": delayed,
    "data": data,
    "codebook": codebook,
    "rolling": rolling,
}
REFUSED = {
    "clamped": (clamped, r"writes\.py:\d+ .*changes a tensor in place .* that is a parameter"),
    "resized": (
        resized,
        r"aten\.sum\S* writes a result of shape \(8,\) to a tensor of shape \(3,\).*writes\.py:\d+ .*out=module\.total",
    ),
    "other_memory": (
        other_memory,
        r"writes\.py:\d+ .*aten\.set_\.source_Tensor, which changes a tensor in place and has no out-of-place form",
    ),
    "bound": (
        bound,
        r"buffer 'kept' is set to a tensor that shares memory with 'first\.weight'.*set it to a clone",
    ),
    "twice": (twice, r"buffer 'kept' is set to a tensor that shares memory with 'other'"),
    "place_read": (
        place_read,
        r"writes\.py:\d+ .*place\[0\] > 0.*the step depends on the value of a tensor",
    ),
}
