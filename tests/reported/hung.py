"""What hangs on parameters and modules: hooks, attributes, flags; and values that no generator
of torch's has drawn."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

Made = tuple[nn.Module, tuple[Tensor, ...], Callable[..., Tensor]]


class Two(nn.Module):
    """A table of words, averaged, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(self.words(ids).mean(1))))
        return out


def made(module: nn.Module, batch: int) -> Made:
    return (
        module,
        (torch.randint(0, 10, (batch, 6)), torch.randint(0, 4, (batch,))),
        F.cross_entropy,
    )


def lower_half(gradient: Tensor) -> Tensor:
    return gradient.tril()


def masked(batch: int = 8) -> Made:
    """Of a layer only the lower triangle is trained, and gradients of the table are clamped,
    then doubled."""
    module = Two()
    module.body.weight.register_hook(lower_half)
    module.words.weight.register_hook(lambda g: g.clamp(-1e-3, 1e-3))
    module.words.weight.register_hook(lambda g: 2 * g)
    return made(module, batch)


def grown(batch: int = 8) -> Made:
    """Only the new rows of a table are trained, and half of a layer: the masks are made where
    the hooks are."""
    module, new = Two(), torch.zeros(10, 1)
    new[7:] = 1
    module.words.weight.register_hook(lambda g: g * new)
    half_of_it = (torch.rand(8, 8) > 0.5).float()
    module.body.weight.register_hook(lambda g: half_of_it * g)
    return made(module, batch)


def decayed(batch: int = 8) -> Made:
    """Decay of one layer by a hook, which sees the parameter itself."""
    module = Two()
    weight = module.head.weight
    weight.register_hook(lambda g: g + 0.1 * weight.detach())
    return made(module, batch)


class Keeping(nn.Module):
    """A mask of its own as a buffer; the hook is a method."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)
        self.register_buffer("mask", (torch.arange(36).view(6, 6) % 3 == 0).float())
        self.lin.weight.register_hook(self.kept)

    def kept(self, gradient: Tensor) -> Tensor:
        assert isinstance(self.mask, Tensor)
        return gradient * self.mask

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin(x)
        return out


def keeping(batch: int = 8) -> Made:
    return Keeping(), (torch.randn(batch, 6), torch.randn(batch, 6)), F.mse_loss


class Gained(Two):
    """A gain that hangs on the parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.body.weight.gain = 0.5  # type: ignore[attr-defined]

    def forward(self, ids: Tensor) -> Tensor:
        gain: float = getattr(self.body.weight, "gain", 1.0)
        out: Tensor = self.head(
            torch.tanh(F.linear(self.words(ids).mean(1), gain * self.body.weight))
        )
        return out + 0 * self.body.bias.sum()


class Reversed(Two):
    """The gradient of what the head reads is turned round, on its way back."""

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.tanh(self.body(self.words(ids).mean(1)))
        x.register_hook(lambda g: -0.3 * g)
        out: Tensor = self.head(x)
        return out


def half(_: nn.Module, inputs: Any, outputs: Any) -> Any:
    return (None if inputs[0] is None else 0.5 * inputs[0],)


def hooked(batch: int = 8) -> Made:
    """Hooks of modules, forward and backward."""
    module = Two()
    module.body.register_full_backward_hook(half)
    module.head.register_full_backward_pre_hook(lambda _, outputs: (3 * outputs[0],))
    module.body.register_forward_hook(lambda _, inputs, output: output + inputs[0])
    module.head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))
    return made(module, batch)


class Freezing(Two):
    """Takes its table out of training in the forward."""

    def forward(self, ids: Tensor) -> Tensor:
        self.words.weight.requires_grad_(False)
        return super().forward(ids)


def drawn(batch: int = 8) -> Made:
    """Weights drawn by numpy, by Python, and by a generator of the module's own."""
    module, own = Two(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        module.words.weight.copy_(torch.tensor(np.random.normal(0, 0.3, (10, 8)).tolist()))
        module.body.weight.copy_(
            torch.tensor([[random.gauss(0, 0.3) for _ in range(8)] for _ in range(8)])
        )
        module.head.weight.copy_(torch.randn(4, 8, generator=own))
    return made(module, batch)


class Low(nn.Module):
    """A weight and a change of low rank."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(size, 2) / 4)
        self.down = nn.Parameter(torch.randn(2, size) / 4)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def adapted(batch: int = 8) -> Made:
    module = Two()
    module.requires_grad_(False)
    parametrize.register_parametrization(module.body, "weight", Low(8))
    return made(module, batch)


def normed(batch: int = 8) -> Made:
    """A direction and a length: as a parametrization, and as the older hook of the module."""
    module = Two()
    module.body = parametrizations.weight_norm(module.body)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        module.head = nn.utils.weight_norm(module.head)
    return made(module, batch)


def bounded(batch: int = 8) -> Made:
    """Divided by the largest singular value, which buffers follow: as a parametrization, and as
    the older hook of the module."""
    module = Two()
    module.body = parametrizations.spectral_norm(module.body)
    module.head = nn.utils.spectral_norm(module.head)
    return made(module, batch)


class Moded(nn.Module):
    """Keeps its statistics, and a bias, whatever mode it is put into; the builder puts it into
    one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def train(self, mode: bool = True) -> Moded:
        super().train(mode)
        self.norm.eval()
        self.body.bias.requires_grad_(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.norm(self.body(x))))
        return out


def moded(batch: int = 8) -> Made:
    return Moded().train(), (torch.randn(batch, 6), torch.randn(batch, 4)), F.mse_loss


class Toggled(Two):
    """One of two uses of a layer trains it."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids).mean(1)
        self.body.requires_grad_(False)
        judged = self.body(x)
        self.body.requires_grad_(True)
        out: Tensor = self.head(torch.tanh(judged) + self.body(x.detach()))
        return out


class Shuffled(Two):
    """Takes its features in an order that Python has drawn, and numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.order = list(range(8))
        random.shuffle(self.order)
        self.kept = np.random.permutation(8).tolist()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids).mean(1)[:, self.order]
        out: Tensor = self.head(torch.tanh(self.body(x))[:, self.kept])
        return out


def toggled(batch: int = 8) -> Made:
    return made(Toggled(), batch)


def shuffled(batch: int = 8) -> Made:
    return made(Shuffled(), batch)


def gained(batch: int = 8) -> Made:
    return made(Gained(), batch)


def turned_round(batch: int = 8) -> Made:
    return made(Reversed(), batch)


def freezing(batch: int = 8) -> Made:
    return made(Freezing(), batch)


# ------------------------------------------------------------------------------------------ refused


def stepping(batch: int = 8) -> Made:
    """An update of its own as soon as a gradient is there."""
    module = Two()

    def update(parameter: Tensor) -> None:
        parameter.data.add_(parameter.grad, alpha=-0.1)  # type: ignore[arg-type]

    module.body.weight.register_post_accumulate_grad_hook(update)
    return made(module, batch)


NODES: list[Any] = []


def reduced(batch: int = 8) -> Made:
    """A hook where a gradient is added to another, as reducers of gradients do it."""
    module = Two()
    NODES.append(torch.autograd.graph.get_gradient_edge(module.head.weight).node)
    NODES[-1].register_hook(lambda *_: None)
    return made(module, batch)


def counted(batch: int = 8) -> Made:
    """Warms up over the steps by a counter."""
    module, steps = Two(), [0]

    def warm(gradient: Tensor) -> Tensor:
        steps[0] += 1
        return gradient * min(1.0, steps[0] / 10)

    module.body.weight.register_hook(warm)
    return made(module, batch)


class Counting:
    """Counts for all that are like it."""

    calls = 0

    def __call__(self, gradient: Tensor) -> Tensor:
        Counting.calls += 1
        return gradient / Counting.calls


def counting(batch: int = 8) -> Made:
    module = Two()
    module.body.weight.register_hook(Counting())
    return made(module, batch)


def recorded(batch: int = 8) -> Made:
    module, seen = Two(), []

    def record(gradient: Tensor) -> None:
        seen.append(gradient)

    module.body.weight.register_hook(record)
    return made(module, batch)


class OwnMode(Two):
    """Freezes its table whenever it is put into training."""

    def train(self, mode: bool = True) -> OwnMode:
        super().train(mode)
        self.words.weight.requires_grad_(False)
        return self


class Thawing(Two):
    def __init__(self) -> None:
        super().__init__()
        self.words.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        self.words.requires_grad_(True)
        return super().forward(ids)


class Skipping(Two):
    """Leaves a layer out by chance, Python's."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids).mean(1)
        for _ in range(8):
            if random.random() < 0.5:
                x = torch.tanh(self.body(x))
        out: Tensor = self.head(x + 0 * self.body(x))
        return out


def own_mode(batch: int = 8) -> Made:
    return made(OwnMode(), batch)


def thawing(batch: int = 8) -> Made:
    return made(Thawing(), batch)


def skipping(batch: int = 8) -> Made:
    return made(Skipping(), batch)


RIGHT = {
    f.__name__: f
    for f in (
        masked,
        grown,
        decayed,
        keeping,
        gained,
        turned_round,
        hooked,
        freezing,
        drawn,
        adapted,
        normed,
        bounded,
        moded,
        toggled,
        shuffled,
    )
}
REFUSED = {
    "stepping": (
        stepping,
        r"parameter 'body\.weight' has the hook stepping.*update after its gradient is accumulated",
    ),
    "reduced": (
        reduced,
        r"parameter 'head\.weight' has the hook reduced.*lambda> \(line \d+\) on its AccumulateGrad node",
    ),
    "counted": (counted, r"keeps 'body\.weight\.hook\.steps\[0\]' from one step to the next"),
    "counting": (counting, r"keeps 'Counting\.calls' from one step to the next"),
    "recorded": (recorded, r"'body\.weight\.hook\.seen' grows or shrinks with every step"),
    "own_mode": (own_mode, r"its own train\(True\) changes requires_grad of 'words\.weight'"),
    "thawing": (thawing, r"sets requires_grad of parameter 'words\.weight' in its forward"),
    "skipping": (
        skipping,
        r"draws from Python's or numpy's random numbers in its step at .*hung\.py:\d+",
    ),
}
