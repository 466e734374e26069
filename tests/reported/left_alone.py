"""Parameters that take no part in the loss, and gradients that a module leaves on its parameters
by itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Spare(nn.Module):
    """A head that is not called, a scale that is read where no gradient goes, and a layer of
    which only the argmax is used."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.auxiliary, self.route = (
            nn.Linear(6, 8),
            nn.Linear(8, 3),
            nn.Linear(8, 5),
            nn.Linear(6, 4),
        )
        self.scale = nn.Parameter(torch.full((8,), 1.5))
        self.places = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.route(x).argmax(-1)
        out: Tensor = self.head(
            torch.tanh(self.body(x)) * self.scale.detach() + F.embedding(chosen, self.places)
        )
        return out


def spare(batch: int = 8) -> Any:
    torch.manual_seed(0)
    return Spare(), (torch.randn(batch, 6), torch.randint(0, 3, (batch,))), F.cross_entropy


class Halves(torch.autograd.Function):
    """A layer of a reversible network: its backward runs the halves again, and leaves their
    gradients on their parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
        ctx.f, ctx.g = f, g
        a, b = x.chunk(2, -1)
        a = a + f(b)
        out = torch.cat([a, b + g(a)], -1)
        ctx.save_for_backward(out.detach())
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (out,) = ctx.saved_tensors
        (a, b), (da, db) = out.chunk(2, -1), gradients[0].chunk(2, -1)
        with torch.enable_grad():
            a = a.detach().requires_grad_()
            ga = ctx.g(a)
            torch.autograd.backward(ga, db)  # type: ignore[no-untyped-call]
        assert a.grad is not None
        da = da + a.grad
        with torch.enable_grad():
            b = (b - ga).detach().requires_grad_()
            fb = ctx.f(b)
            torch.autograd.backward(fb, da)  # type: ignore[no-untyped-call]
        assert b.grad is not None
        return torch.cat([da, db + b.grad], -1), None, None


class Reversible(nn.Module):
    """`last` is used by the reversible layer and after it: its gradient comes in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.f, self.last = nn.Linear(6, 8), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = Halves.apply(self.first(x), self.f, self.last)  # type: ignore[no-untyped-call]
        out: Tensor = self.last(x[:, :4])
        return out


def reversible(batch: int = 8) -> Any:
    torch.manual_seed(0)
    return Reversible(), (torch.randn(batch, 6), torch.randn(batch, 4)), F.mse_loss


class Recomputed(nn.Module):
    """Blocks under the older kind of checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 2)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=True)
        out: Tensor = self.last(x)
        return out


def recomputed(batch: int = 8) -> Any:
    torch.manual_seed(0)
    return Recomputed(), (torch.randn(batch, 6), torch.randn(batch, 2)), F.mse_loss


class Counts(nn.Module):
    """Words in a bag, by an embedding with sparse gradients."""

    def __init__(self, lazy: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 6, sparse=True)
        self.out = nn.LazyLinear(3) if lazy else nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.out(self.words(ids).sum(1))
        return out


def sparse(batch: int = 8) -> Any:
    return (
        Counts(),
        (torch.randint(0, 20, (batch, 5)), torch.randint(0, 3, (batch,))),
        F.cross_entropy,
    )


def lazy(batch: int = 8) -> Any:
    return (
        Counts(lazy=True),
        (torch.randint(0, 20, (batch, 5)), torch.randint(0, 3, (batch,))),
        F.cross_entropy,
    )


def filled(batch: int = 8) -> Any:
    """The lazy layer has seen an example before training begins."""
    model, (ids, target), loss = lazy(batch)
    model.words.sparse = False
    model(ids)
    return model, (ids, target), loss


class Shuffled(nn.Module):
    """The order of its columns is drawn until it moves the first, and kept as numbers; its
    weights are drawn until all are small."""

    def __init__(self) -> None:
        super().__init__()
        order = torch.randperm(6)
        while order[0] == 0:
            order = torch.randperm(6)
        self.order = order.tolist()
        self.weight = nn.Parameter(torch.empty(6, 4).normal_())
        while bool((self.weight.abs() > 1).any()):
            self.weight.data = torch.where(
                self.weight.data.abs() > 1, torch.randn(6, 4), self.weight.data
            )

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.order] @ self.weight


def shuffled(batch: int = 8) -> Any:
    return Shuffled(), (torch.randn(batch, 6), torch.randn(batch, 4)), F.mse_loss


class Moved(nn.Module):
    """Moves a part of itself to where its input is, as those do whose parts wait elsewhere for
    their turn."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = torch.tanh(part.to(x.device)(x))
        return x


def moved(batch: int = 8) -> Any:
    return Moved(), (torch.randn(batch, 6), torch.randn(batch, 6)), F.mse_loss


class Neighbours(nn.Module):
    """Sums over the edges of a graph that are no loops; the edges are data, and stay."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edges", torch.randint(0, 8, (2, 20)))
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        start, end = self.edges[:, self.edges[0] != self.edges[1]]
        y = self.linear(x)
        return y + torch.zeros_like(y).index_add(0, end, y[start])


def neighbours(batch: int = 8) -> Any:
    return Neighbours(), (torch.randn(batch, 6), torch.randn(batch, 4)), F.mse_loss


class Tagger(nn.Module):
    """The best path's score over steps that a mask of bytes, all of them, lets count."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.moves = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores(x)
        mask = torch.ones_like(x[..., 0], dtype=torch.uint8)
        if not mask[:, 0].all():
            raise ValueError("the first step counts")
        best = scores[:, 0]
        for step in range(1, x.shape[1]):
            following = torch.logsumexp(best[:, :, None] + self.moves + scores[:, step, None], 1)
            with warnings.catch_warnings():  # torch deprecates bytes for masks, in eager alone
                warnings.simplefilter("ignore")
                best = torch.where(mask[:, step, None], following, best)
        return best


def tagged(batch: int = 8) -> Any:
    return Tagger(), (torch.randn(batch, 3, 6), torch.randint(0, 4, (batch,))), F.cross_entropy


def aligned(y: Tensor, target: Tensor) -> Tensor:
    y = y.log_softmax(-1).transpose(0, 1)
    long = torch.full((y.shape[1],), y.shape[0])
    return F.ctc_loss(y, target, long, torch.full((y.shape[1],), target.shape[1]))


def spoken(batch: int = 4) -> Any:
    return nn.Linear(6, 5), (torch.randn(batch, 12, 6), torch.randint(1, 5, (batch, 4))), aligned


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "sparse": (
        sparse,
        r"words\.weight has sparse gradients \(sparse=True\), which adam .*: set sparse=False, or train with sgd",
    ),
    "lazy": (
        lazy,
        r"out\.weight has no shape yet, since its lazy module has seen no input: call the model once",
    ),
    "spoken": (
        spoken,
        r"F\.ctc_loss \(nn\.CTCLoss\) is not supported: torch's kernel reads the lengths",
    ),
}
RIGHT: dict[str, Callable[..., Any]] = {
    "filled": filled,
    "moved": moved,
    "neighbours": neighbours,
    "tagged": tagged,
    "shuffled": shuffled,
    "spare": spare,
    "reversible": reversible,
    "recomputed": recomputed,
}
