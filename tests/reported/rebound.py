"""Models that give a tensor other numbers than by a write: `.data =`, and buffers set anew that
backward still reads."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

F = nn.functional


class Teacher(nn.Module):
    """A copy that follows at a distance, moved by `.data =` before it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for ours, theirs in zip(
                self.student.parameters(), self.teacher.parameters(), strict=True
            ):
                theirs.data = 0.75 * theirs.data + 0.25 * ours.data
            wanted = self.teacher(other)
        return self.student(x), wanted


def teacher(batch: int = 6) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    def loss(outputs: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return F.mse_loss(outputs[0], outputs[1].softmax(-1)) + F.cross_entropy(outputs[0], target)

    return (
        Teacher(),
        (torch.randn(batch, 6), torch.randn(batch, 6), torch.randint(0, 4, (batch,))),
        loss,
    )


class Centres(nn.Module):
    """Nearest centres, each moved to what fell to it, through `.data` and through its buffer in
    turn."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 3), nn.Linear(3, 6)
        self.register_buffer("centres", torch.randn(5, 3))
        self.register_buffer("counts", torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        code = self.encode(x)
        nearest = F.one_hot(torch.cdist(code, self.centres).argmin(-1), 5).to(x.dtype)
        chosen = nearest @ self.centres
        self.counts.data = 0.9 * self.counts.data + 0.1 * nearest.sum(0)
        moved = (nearest.T @ code.detach()) / self.counts[:, None]
        self.centres.data.lerp_(moved, 0.1)
        out: Tensor = self.decode(code + (chosen - code).detach())
        return out


def centres(batch: int = 6) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    x = torch.randn(batch, 6)
    return Centres(), (x, x.clone()), F.mse_loss


class Continued(nn.Module):
    """A recurrent network that goes on where the last batch ended: backward reads the state that
    the step began with."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.head = (
            nn.Embedding(11, 6),
            nn.GRU(6, 5, batch_first=True),
            nn.Linear(5, 11),
        )
        self.register_buffer("state", torch.zeros(1, 6, 5))

    def forward(self, tokens: Tensor) -> Tensor:
        y, state = self.cell(self.embed(tokens), self.state)
        self.state = state.detach()
        out: Tensor = self.head(y)
        return out


def continued(batch: int = 6) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    tokens = torch.randint(0, 11, (batch, 4))
    return (
        Continued(),
        (tokens, tokens.roll(-1, 1)),
        lambda y, t: F.cross_entropy(y.flatten(0, 1), t.flatten()),
    )


class Scaled(nn.Module):
    """Multiplies by a running scale, which it then sets anew."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(x)
        out = y * self.scale
        self.scale = 0.5 * self.scale + y.detach().abs().amax(0)
        return out


def scaled(batch: int = 6) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    return Scaled(), (torch.randn(batch, 6), torch.randint(0, 4, (batch,))), F.cross_entropy


class Normed(nn.Module):
    """Norms the rows of a weight that is trained, before it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.head.weight.data = F.normalize(self.head.weight.data, dim=1)
        out: Tensor = self.head(x)
        return out


def normed(batch: int = 6) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    return Normed(), (torch.randn(batch, 6), torch.randint(0, 4, (batch,))), F.cross_entropy


class Shrunk(nn.Module):
    """Sets `.data` to a tensor of another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.register_buffer("seen", torch.zeros(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.data = x.detach()[:2]
        out: Tensor = self.head(x)
        return out


def shrunk(batch: int = 6) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    return Shrunk(), (torch.randn(batch, 6), torch.randint(0, 4, (batch,))), F.cross_entropy


class Replaced(nn.Module):
    """Sets a parameter to a new one in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.scale = nn.Linear(6, 4), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.scale = nn.Parameter(self.scale.detach() * 0.5)
        out: Tensor = self.head(x) * self.scale
        return out


def replaced(batch: int = 6) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    return Replaced(), (torch.randn(batch, 6), torch.randint(0, 4, (batch,))), F.cross_entropy


class Twice(nn.Module):
    """A block with batch norm under a checkpoint: torch runs it twice a step, and its running
    statistics move twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU())
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(checkpoint(self.block, x, use_reentrant=False))
        return out


def twice(batch: int = 6) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    return Twice(), (torch.randn(batch, 6), torch.randint(0, 4, (batch,))), F.cross_entropy


class Once(Twice):
    """The same with statistics that stay, so that it does not matter how often it is run."""

    def train(self, mode: bool = True) -> Once:
        super().train(mode)
        self.block[1].eval()
        return self


def once(batch: int = 6) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    return Once().train(), (torch.randn(batch, 6), torch.randint(0, 4, (batch,))), F.cross_entropy


RIGHT = {
    "teacher": teacher,
    "centres": centres,
    "continued": continued,
    "scaled": scaled,
    "once": once,
}
REFUSED = {
    "normed": (
        normed,
        r"rebound\.py:\d+ \(self\.head\.weight\.data = .*changes a tensor in place .* that is a parameter",
    ),
    "replaced": (replaced, r"parameter 'scale' is set to another tensor in forward"),
    "twice": (twice, r"checkpoint changes buffers \(block\.1\.running_mean"),
    "shrunk": (shrunk, r"\.data of a tensor of shape \(6, 6\) .* is set to one of shape \(2, 6\)"),
}
