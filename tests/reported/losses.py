"""Losses that hold tensors: modules with buffers and parameters, and what functions close over."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parts = tuple[nn.Module, tuple[Tensor, ...], object]

#: How much each class counts.
SHARES = torch.tensor([0.5, 1.0, 2.0, 0.25])


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(x)))
        return out


def _classes(batch: int, loss: object) -> Parts:
    return Body(), (torch.randn(batch, 6), torch.randint(0, 4, (batch,))), loss


def weighted(batch: int = 8) -> Parts:
    return _classes(
        batch, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.5, 2.0]), label_smoothing=0.1)
    )


def positive(batch: int = 8) -> Parts:
    target = (torch.randn(batch, 4) > 0).float()
    return (
        Body(),
        (torch.randn(batch, 6), target),
        nn.BCEWithLogitsLoss(pos_weight=torch.arange(1.0, 5.0)),
    )


class Centres(nn.Module):
    """Pulls logits to the learned centre of their class, sharpened by a learned temperature, and
    counts classes in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(4, 4))
        self.heat = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("seen", torch.zeros(4))
        self.entropy = nn.CrossEntropyLoss(weight=torch.ones(4) / 2)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        self.seen = 0.9 * self.seen + F.one_hot(target, 4).to(logits.dtype).mean(0)
        pull = (logits - self.centres[target]).square().sum(1).mean()
        out: Tensor = (
            self.entropy(logits * self.heat.exp(), target)
            + 0.1 * pull
            + self.seen.square().sum() * self.heat
        )
        return out


def centres(batch: int = 8) -> Parts:
    return _classes(batch, Centres())


class Margin(nn.Module):
    """The classes' directions are the loss's, as in face recognition."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        cosine = F.linear(F.normalize(features), F.normalize(self.weight))
        apart = cosine - 0.2 * F.one_hot(target, 5).to(cosine.dtype)
        return F.cross_entropy(8.0 * apart, target)


def margin(batch: int = 8) -> Parts:
    return Body(), (torch.randn(batch, 6), torch.randint(0, 5, (batch,))), Margin()


def _focal(alpha: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        sure = F.log_softmax(logits, 1).gather(1, target[:, None])[:, 0]
        return -(alpha[target] * (1 - sure.exp()) ** 2 * sure).mean()

    return loss


def focal(batch: int = 8) -> Parts:
    return _classes(batch, _focal(torch.tensor([0.1, 0.2, 0.3, 0.4])))


def _scaled(logits: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    return F.cross_entropy(logits * scale, target)


def partial(batch: int = 8) -> Parts:
    return _classes(batch, functools.partial(_scaled, scale=torch.linspace(0.5, 1.5, 4)))


class Smoothed:
    """A loss that is an object, with its table in an attribute and in a list."""

    def __init__(self) -> None:
        self.table = torch.full((4, 4), 0.1) + 0.6 * torch.eye(4)
        self.more = [torch.arange(4.0)]

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        wanted = self.table[target]
        return -(wanted * F.log_softmax(logits + self.more[0], 1)).sum(1).mean()


def smoothed(batch: int = 8) -> Parts:
    return _classes(batch, Smoothed())


def _of_shares(logits: Tensor, target: Tensor) -> Tensor:
    return (F.cross_entropy(logits, target, reduction="none") * SHARES[target]).mean()


def shares(batch: int = 8) -> Parts:
    return _classes(batch, _of_shares)


def _with_default(logits: Tensor, target: Tensor, bias: Tensor = SHARES) -> Tensor:
    return F.cross_entropy(logits + bias, target)


def default(batch: int = 8) -> Parts:
    return _classes(batch, _with_default)


def decay(batch: int = 8) -> Parts:
    """A loss that closes over the model: its weights are the parameters."""
    module, inputs, _ = _classes(batch, None)
    return (
        module,
        inputs,
        lambda out, target: (
            F.cross_entropy(out, target)
            + 0.01 * module.get_parameter("first.weight").square().sum()
        ),
    )


class Taught(Body):
    """A frozen teacher in the loss, and the model's own way to compute it."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = (Body().requires_grad_(False),)

    def compare(self, out: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return (
            F.cross_entropy(out[0], target)
            + F.mse_loss(out[0], self.teacher[0](out[1])) * SHARES[0]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


def decided(batch: int = 8) -> Parts:
    """A loss that branches on a buffer that never changes."""
    return _classes(batch, Switch())


class Switch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mode", torch.tensor([0, 2]))
        self.register_buffer("weight", torch.tensor(0.5))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, target) * float(self.weight)
        return loss * 3 if int(self.mode[1]) == 2 else loss


class Unlisted(Body):
    """Layers in a plain list: an optimizer is not given them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(6, 6)]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.layers[0](x))


def unlisted(batch: int = 8) -> Parts:
    return Unlisted(), (torch.randn(batch, 6), torch.randint(0, 4, (batch,))), F.cross_entropy


def closed_over(batch: int = 8) -> Parts:
    head = Centres()
    return _classes(batch, lambda out, target: head(out, target))


RIGHT = {
    "weighted": weighted,
    "positive": positive,
    "centres": centres,
    "margin": margin,
    "focal": focal,
    "partial": partial,
    "smoothed": smoothed,
    "shares": shares,
    "default": default,
    "decay": decay,
    "decided": decided,
}
REFUSED = {
    "unlisted": (
        unlisted,
        r"has a gradient of 'layers\[0\]\.weight', which is not a registered parameter.*nn\.ModuleList",
    ),
    "closed_over": (
        closed_over,
        r"has a gradient of 'loss\.head\.(heat|centres)'.*the loss itself as a module",
    ),
}
