"""Parameters that take no part in the loss, and gradients that a module leaves on its parameters by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Spare(nn.Module):
    """A head that is not called, a scale that is read where no gradient goes, and a layer of which only the argmax is used."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.auxiliary, self.route = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 5), nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.full((8,), 1.5))
        self.places = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.route(x).argmax(-1)
        out: Tensor = self.head(torch.tanh(self.body(x)) * self.scale.detach() + F.embedding(chosen, self.places))
        return out


def spare(batch: int = 8) -> Any:
    torch.manual_seed(0)
    return Spare(), (torch.randn(batch, 6), torch.randint(0, 3, (batch,))), F.cross_entropy


class Halves(torch.autograd.Function):
    """A layer of a reversible network: its backward runs the halves again, and leaves their gradients on their parameters."""

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


RIGHT: dict[str, Callable[..., Any]] = {"spare": spare, "reversible": reversible, "recomputed": recomputed}
