"""Models whose samples look at each other: what is split along the batch has to meet again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

F = nn.functional


class Pairs(nn.Module):
    """Two encoders whose samples are each other's negatives, at a learnt temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 5), nn.Linear(7, 5)
        self.temperature = nn.Parameter(torch.tensor(1.3))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = F.normalize(self.left(a), dim=-1), F.normalize(self.right(b), dim=-1)
        return a @ b.T * self.temperature.exp()


def pairs(batch: int = 6) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    def loss(scores: Tensor, _: Tensor) -> Tensor:
        place = torch.arange(len(scores))
        return F.cross_entropy(scores, place) + F.cross_entropy(scores.T, place)

    return Pairs(), (torch.randn(batch, 6), torch.randn(batch, 7), torch.zeros(batch)), loss


class Frequent(nn.Module):
    """An embedding whose gradients are divided by how often a word is in the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 6, scale_grad_by_freq=True), nn.Linear(6, 3)

    def forward(self, words: Tensor) -> Tensor:
        out: Tensor = self.head(self.embed(words).mean(1))
        return out


def frequent(batch: int = 8) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    return (
        Frequent(),
        (torch.randint(0, 4, (batch, 5)), torch.randint(0, 3, (batch,))),
        F.cross_entropy,
    )


def survival(batch: int = 6) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    """A partial likelihood: each event against all that last longer, in order of time."""

    def loss(scores: Tensor, target: Tensor) -> Tensor:
        order = target[:, 0].argsort(descending=True, stable=True)
        risk, event = scores.flatten()[order], target[order, 1]
        return -((risk - risk.logcumsumexp(0)) * event).sum() / event.sum()

    target = torch.stack([torch.rand(batch), (torch.arange(batch) % 3 > 0).float()], 1)
    return (
        nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 1)),
        (torch.randn(batch, 6), target),
        loss,
    )


class OwnKernels(nn.Module):
    """A kernel for every sample, in one convolution with the batch in its groups."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.head = nn.Linear(5, 4 * 2 * 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        batch, channels, length = x.shape
        weight = self.kernels(code).view(batch * 4, channels, 3)
        y = F.conv1d(x.reshape(1, batch * channels, length), weight, groups=batch).view(
            batch, 4, length - 2
        )
        out: Tensor = self.head(y.relu().mean(-1))
        return out


def own_kernels(batch: int = 6) -> tuple[nn.Module, tuple[Tensor, ...], object]:
    batches = (torch.randn(batch, 2, 7), torch.randn(batch, 5), torch.randint(0, 3, (batch,)))
    return OwnKernels(), batches, F.cross_entropy


RIGHT = {"pairs": pairs, "frequent": frequent, "survival": survival, "own_kernels": own_kernels}
